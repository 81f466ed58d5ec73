"""`diffprobe decode`; what it computes is tested in tests/evaluation/test_decode.py."""

import numpy as np
import pytest

from diffprobe.analysis.direction_extremes import DirectionExtremes, ExtremeSample
from diffprobe.analysis.phrase_ranking import RankedPhrase
from diffprobe.analysis.word_decomposition import Decomposition, Term
from diffprobe.cli.main import main
from diffprobe.evaluation import decode
from diffprobe.probes.direction import Direction
from diffprobe.probes.null_distribution import Null


def ranked(phrase, score, q=0.01):
    return RankedPhrase(
        phrase=phrase, same=(), count=12, score=score, interval=(score - 0.5, score + 0.5), random_quantile=0.9,
        p=0.002, smallest_p=0.002, q=q,
    )  # fmt: skip


def a_sum(*terms):
    chance = Null(observed=0.8, values=np.linspace(0, 0.2, 21), n_permutations=21)
    return Decomposition(
        terms=terms, cosine=0.8, fitted_cosine=0.9, path=(0.7, 0.8), random=chance, shuffled=chance, n_phrases=14,
        n_left_out=3, n_folds=4,
    )  # fmt: skip


def term(phrase, coefficient, opposite=()):
    return Term(phrase=phrase, opposite=opposite, coefficient=coefficient, cosine=0.3, n_folds=4)


def test_it_prints_both_ends(tmp_path, capsys, monkeypatch):
    import torch

    direction = Direction(
        vector=torch.ones(2), scale=1.0, midpoint=0.0, target="style", positive="noto", negative="twemoji", cell="a@t0",
        estimator="ridge",
    )  # fmt: skip
    ends = DirectionExtremes(positive=(ExtremeSample(key="k", caption="a\x1b[31mred", projection=2.0),), negative=())
    found = decode.Decoded(
        direction=direction, ranked=(ranked("red", 1.0), ranked("green", 0.5, q=0.5), ranked("blue", -1.0)),
        captions=ends, left_out=("toy",), notes=("a note",), words=a_sum(term("red", 0.7, ("not\x1b[31mred",))),
        text_words=a_sum(),
    )  # fmt: skip
    monkeypatch.setattr(decode, "decode", lambda folder, config, output: (found, tmp_path / "result.json"))
    assert main(["decode", "somewhere", "store=stores/1", "--top", "1"]) == 0
    shown = capsys.readouterr().out
    above, below = shown.split("- style: twemoji")
    assert "red" in above and "green" not in shown and "blue" in below and "\x1b" not in shown
    assert "as a sum of 1 of 14 phrases" in shown and "+0.70" in shown and "4 of 4" in shown
    assert "cosine on held-out samples 0.80, on the samples of the fit 0.90" in shown
    assert "random directions: mean 0.10, 95th percentile 0.19, p 0.045 (at least 0.045)" in shown
    assert "the text of both ends as a sum of 0 of 14 phrases" in shown and "words.csv" in shown
    assert "3 phrases; 2 with q at most 0.05; 1 left out" in shown and "note: a note" in shown


def test_a_check_loads_nothing_and_wrong_settings_are_refused(capsys):
    assert main(["decode", "missing", "store=missing", "--check"]) == 0
    for words, fact in (
        (["store=a", "bonk=captions"], "bonk"), ([], "store"), (["store=a", "--top", "0"], "--top 0"),
    ):  # fmt: skip
        assert main(["decode", "missing", *words]) == 2
        assert fact in capsys.readouterr().err
    assert main(["decode", "missing", "store=missing"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["decode"])
