"""``diffprobe decode``: rank words and captions along a saved direction."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_keys, parse_keys
from diffprobe.core.errors import ConfigError

if TYPE_CHECKING:
    from diffprobe.analysis.direction_extremes import ExtremeSample
    from diffprobe.analysis.phrase_ranking import RankedPhrase
    from diffprobe.analysis.word_decomposition import Decomposition

GROUP = "meaning"
HELP = "rank words and captions along a saved direction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the direction, the settings, the length of the tables and the output folder."""
    parser.add_argument("direction", metavar="DIRECTION", help="folder of a saved direction, below probes/ of a run")
    add_keys(parser, "settings: store=FOLDER, bank=captions or bank=FILE, and those of the documentation")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="phrases printed per end (default: 10)")
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print both ends."""
    from diffprobe.evaluation.decode import PHRASES_FILE, WORDS_FILE, DecodeConfig, decode

    if args.top < 1:
        raise ConfigError(f"--top {args.top}: at least 1.")
    config = parse_keys(args.keys, DecodeConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    decoded, path = decode(args.direction, config, output=args.output)
    found = decoded.ranked
    above, below = [one for one in found if one.score > 0], [one for one in reversed(found) if one.score < 0]
    ends = (
        (decoded.direction.positive, above[: args.top], decoded.captions.positive),
        (decoded.direction.negative, below[: args.top], decoded.captions.negative),
    )
    for sign, (name, phrases, captions) in zip("+-", ends, strict=True):
        print(f"{sign} {decoded.direction.target}: {name}")
        print("\n".join(_table(phrases)))
        print("\n".join(_captions(captions[:3])) + "\n")
    print(f"{len(found)} phrases; {sum(one.q <= 0.05 for one in found)} with q at most 0.05; {len(decoded.left_out)} "
          "left out (too rare or too common)")  # fmt: skip
    print("score, place of a caption: in standard deviations of the coordinate")
    print("random: share of random directions with a smaller score")
    print("p: captions shuffled by group, two-sided; q: Benjamini-Hochberg over the phrases")
    for title, words in (("the direction", decoded.words), ("the text of both ends", decoded.text_words)):
        if words is not None:
            print("\n".join(_sum(title, words)))
    for note in decoded.notes:
        print(f"note: {note}")
    print(f"result: {path}")
    print(f"table: {path.with_name(PHRASES_FILE)}")
    if decoded.words is not None or decoded.text_words is not None:
        print(f"table of the sums: {path.with_name(WORDS_FILE)}")
    return 0


def _table(phrases: "Sequence[RankedPhrase]") -> list[str]:
    from diffprobe.core.columns import aligned
    from diffprobe.core.terminal import one_line

    heads = ["phrase", "n", "score", "interval", "random", "p", "q", "text alone"]
    rows = [
        [
            one_line(one.phrase), str(one.count), f"{one.score:+.2f}",
            "" if one.interval is None else f"{one.interval[0]:+.2f} to {one.interval[1]:+.2f}",
            f"{one.random_quantile:.3f}", f"{one.p:.2g}", f"{one.q:.2g}",
            "" if one.text_score is None else f"{one.text_score:+.2f}",
        ]
        for one in phrases
    ]  # fmt: skip
    if all(one.text_score is None for one in phrases):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return [
        "  " + line
        for line in aligned([heads, *rows], [False, True, True, False, True, True, True, True][: len(heads)])
    ]


def _sum(title: str, words: "Decomposition") -> list[str]:
    from diffprobe.core.columns import aligned
    from diffprobe.core.terminal import one_line

    lines = [f"\n{title} as a sum of {len(words.terms)} of {words.n_phrases} phrases"]
    if words.terms:
        rows = [
            [
                one_line(one.phrase), f"{one.coefficient:+.2f}", f"{one.cosine:+.2f}",
                f"{one.n_folds} of {words.n_folds}", one_line("; ".join(one.opposite)),
            ]
            for one in words.terms
        ]  # fmt: skip
        heads = ["phrase", "coefficient", "cosine alone", "folds", "the reverse of"]
        if not any(one.opposite for one in words.terms):
            heads, rows = heads[:-1], [row[:-1] for row in rows]
        lines += ["  " + line for line in aligned([heads, *rows], [False, True, True, True, False][: len(heads)])]
    lines.append(
        f"  cosine on held-out samples {words.cosine:.2f}, on the samples of the fit {words.fitted_cosine:.2f}"
    )
    for name, null in (("random directions", words.random), ("shuffled captions", words.shuffled)):
        lines.append(
            f"  {name}: mean {null.mean:.2f}, 95th percentile {null.percentiles(0.95)[0]:.2f}, "
            f"p {null.p:.2g} (at least {null.smallest_p:.2g})"
        )
    return lines


def _captions(samples: "Sequence[ExtremeSample]") -> list[str]:
    from diffprobe.core.terminal import one_line

    return [f"  caption at {one.projection:+.1f}: {one_line(one.caption)}" for one in samples]
