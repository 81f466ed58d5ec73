explorer.put("0/top",{"perLatent":4,"images":"AAAAAAEAAAD//////////wEAAAAAAAAA////////////////////////////////"});
