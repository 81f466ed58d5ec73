explorer.put("0/images",[
["key-0","picture 0 of a moon","b"],
["key-1","\u003c/script\u003e\u003cimg src=x onerror=\"window.hacked=1\"\u003e'`${1}\u202ertl\u2028\u0000\ud83c\udf19 \u0634\u0645\u0633","a"]
]);
