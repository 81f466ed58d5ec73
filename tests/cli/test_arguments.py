"""The grammar of the command line: mixed order, nearest names, shared arguments."""

import pytest

from diffprobe.cli.arguments import Parser, add_check, add_settings, sub_verbs
from diffprobe.cli.main import make_parser, verbs


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="do")
    add_settings(parser, note="a note")
    add_check(parser)
    parser.add_argument("--device")
    return parser


def test_options_and_settings_can_be_mixed(parser: Parser) -> None:
    args = parser.parse_args(["a=1", "--check", "b=2", "--device", "cpu", "c=3"])
    assert args.settings == ["a=1", "b=2", "c=3"] and args.check and args.device == "cpu"
    assert parser.parse_args([]).settings == []


def test_an_unknown_option_names_the_nearest(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["a=1", "--devise=cpu"])
    assert "nearest to --devise=cpu: --device" in capsys.readouterr().err


def test_sub_verbs_mix_too_and_an_unknown_one_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="do")
    verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    verbs.add_parser("other").add_argument("--checks")
    sub = verbs.add_parser("backbone")
    sub.add_argument("folder")
    add_settings(sub)
    add_check(sub)
    args = parser.parse_args(["backbone", "here", "a=1", "--check", "b=2"])
    assert (args.folder, args.settings, args.check) == ("here", ["a=1", "b=2"], True)
    nearest = "nearest to --chek: --check, --help\n"  # not the options of other verbs
    for arguments, hint in ((["backbon"], "nearest: backbone"), (["backbone", "here", "--chek"], nearest)):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(arguments)
        assert hint in capsys.readouterr().err


def test_every_verb_with_settings_or_check_has_the_shared_ones() -> None:
    def walk(parser):
        yield parser
        for sub in sub_verbs(parser).values():
            yield from walk(sub)

    for verb in verbs():
        for parser in walk(make_parser(verb)):
            for action in parser._actions:
                if action.dest == "settings":
                    assert action.help.startswith("experiment=NAME, group=choice"), parser.prog
                if action.dest == "check":
                    assert action.help == "validate the configuration and stop; nothing is loaded", parser.prog
