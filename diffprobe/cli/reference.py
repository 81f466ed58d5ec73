"""The command-line reference in Markdown, rendered from the parsers of all verbs for the documentation."""

import argparse

from diffprobe.cli.arguments import GROUPS, sub_verbs
from diffprobe.cli.main import make_parser, verb_groups


def render_reference() -> str:
    """Return one section per group and verb: description, usage, arguments, and the same for each sub-verb."""
    lines = ["# Command line", ""]
    groups = verb_groups()
    for group in GROUPS:
        if group not in groups:
            continue
        lines += [f"## {group.capitalize()}", ""]
        for verb in groups[group]:
            lines += _section(make_parser(verb), level=3)
    return "\n".join(lines).rstrip() + "\n"


def _section(parser: argparse.ArgumentParser, *, level: int, text: str = "") -> list[str]:
    lines = [f"{'#' * level} {parser.prog}", ""]
    description = parser.description or text
    if description:
        lines += [f"{description[0].upper()}{description[1:]}.", ""]
    lines += ["```text", " ".join(parser.format_usage().split()), "```", ""]
    subs = sub_verbs(parser)
    skipped = (argparse._SubParsersAction, argparse._HelpAction)
    rows = [_row(action) for action in parser._actions if not isinstance(action, skipped)]
    if rows:
        lines += ["| argument | meaning |", "| :--- | :--- |", *rows, ""]
    for name, sub in subs.items():
        lines += _section(sub, level=level + 1, text=_help_of(parser, name))
    return lines


def _row(action: argparse.Action) -> str:
    """Return the table row of one argument."""
    names = "`, `".join(action.option_strings) or str(action.metavar or action.dest)
    values = "|".join(map(str, action.choices)) if action.choices else action.metavar
    if action.option_strings and action.nargs != 0:
        names += f" {values or action.dest.upper()}"
    elif not action.option_strings and action.nargs in ("*", "?"):
        names = f"[{names}{' ...' if action.nargs == '*' else ''}]"
    cells = [f"`{names}`", action.help or ""]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _help_of(parser: argparse.ArgumentParser, name: str) -> str:
    """Return the help line of a sub-verb, as its parent lists it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                if choice.dest == name:
                    return choice.help or ""
    return ""
