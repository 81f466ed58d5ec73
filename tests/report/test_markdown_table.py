from diffprobe.report.markdown_table import markdown_table


def test_a_table_without_rows_is_empty_and_bars_are_escaped():
    assert markdown_table(["a", "b"], []) == ""
    assert markdown_table(["a", "b"], [["1|2", "3"]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1&#124;2 | 3 |"]
