"""The reference names every verb, sub-verb and option."""

from diffprobe.cli.arguments import sub_verbs
from diffprobe.cli.main import make_parser, verb_groups, verbs
from diffprobe.cli.reference import render_reference


def test_the_reference_is_complete():
    text = render_reference()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {group.capitalize()}" for group in verb_groups()
    ]

    def check(parser):
        assert f"# {parser.prog}\n" in text
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"`{option}" in text
        for sub in sub_verbs(parser).values():
            check(sub)

    for verb in verbs():
        check(make_parser(verb))


def test_rows_are_valid_markdown_and_stable():
    text = render_reference()
    assert text == render_reference() and text.endswith("\n") and "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows and all(row.replace(r"\|", "").count("|") == 3 for row in rows)
