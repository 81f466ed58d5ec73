"""``diffprobe completion``: print a script that completes verbs, options, keys and presets in a shell."""

import argparse
import dataclasses
from typing import get_args, get_type_hints

GROUP = "runs"
HELP = "print the completion script of a shell, bash or zsh"

_FUNCTION = r"""
_diffprobe() {
    local cur="${COMP_LINE:0:COMP_POINT}" verb="${COMP_WORDS[1]}" words
    cur="${cur##*[[:space:]]}"
    if [ "$COMP_CWORD" -le 1 ]; then
        words="@VERBS@"
    else
        case "$verb" in
@CASES@
        esac
        case "$cur" in
            -*) ;;
            *) case " @SETTINGS@ " in
                *" $verb "*) words="$words $(command diffprobe completion words 2>/dev/null)" ;;
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    case "$cur" in
        *=*) COMPREPLY=("${COMPREPLY[@]#"${cur%=*}="}") ;;
    esac
    case "${COMPREPLY[0]}" in
        *=) compopt -o nospace 2>/dev/null ;;
    esac
}
complete -o default -F _diffprobe diffprobe
"""
_ZSH = "autoload -Uz compinit && compinit\nautoload -Uz bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument(
        "what", choices=("bash", "zsh", "words"), help="a shell; or the keys and presets that its script asks for"
    )


def run(args: argparse.Namespace) -> int:
    """Print the script, or the words that depend on the working folder."""
    print("\n".join(setting_words()) if args.what == "words" else script(args.what))
    return 0


def setting_words() -> list[str]:
    """Return `group=choice` of all presets, `experiment=NAME`, and `key=` of a probe run. Loads no torch."""
    from diffprobe.config import search_path
    from diffprobe.config.schema import RunConfig

    presets = [f"{group}={choice}" for group, choices in search_path.groups().items() for choice in choices]
    experiments = [f"experiment={name}" for name in search_path.experiments()]
    return sorted({*presets, *experiments, *_keys(RunConfig, "")})


def _keys(cls: type, at: str) -> list[str]:
    found = []
    for name, hint in get_type_hints(cls).items():
        blocks = [arm for arm in (hint, *get_args(hint)) if dataclasses.is_dataclass(arm) and isinstance(arm, type)]
        found += _keys(blocks[0], f"{at}{name}.") if blocks else [f"{at}{name}="]
    return found


def script(shell: str) -> str:
    """Return the script of a shell; in zsh the function of bash runs in its compatibility mode."""
    from diffprobe.cli.arguments import sub_verbs
    from diffprobe.cli.main import make_parser, verbs

    cases, takes_settings = [], []
    for verb in verbs():
        parser = make_parser(verb)
        parsers = [parser, *sub_verbs(parser).values()]
        words = {*sub_verbs(parser), "--traceback"}
        for action in (action for each in parsers for action in each._actions):
            words |= {name for name in action.option_strings if name.startswith("--")}
            words |= {str(choice) for choice in action.choices or ()}
            takes_settings += [verb] if action.dest in ("settings", "command") else []
        words |= set(verbs()) if verb == "submit" else set()  # it goes before another verb
        cases.append(f'            {verb}) words="{" ".join(sorted(words))}" ;;')
    filled = _FUNCTION.replace("@VERBS@", " ".join(verbs())).replace("@CASES@", "\n".join(cases))
    filled = filled.replace("@SETTINGS@", " ".join(dict.fromkeys(takes_settings))).strip()
    return f"{_ZSH if shell == 'zsh' else ''}{filled}"
