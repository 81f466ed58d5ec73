"""The leaderboard on a tiny model: rows, controls, dictionaries of one's own, and what is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffprobe.benchmarks import leaderboard
from diffprobe.benchmarks.leaderboard import BOARDS, Board, Fitted, as_rows, bench_dictionaries, read_ground, score
from diffprobe.benchmarks.peer_dictionaries import PeerLibrary
from diffprobe.benchmarks.timed_dictionaries import TrainingSettings
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.probes.sae.convert import to_dictionary_learning, to_saelens
from diffprobe.probes.sae.topk import Config as TopKConfig
from diffprobe.probes.sae.topk import make
from tests.benchmarks.test_timed_dictionaries import toy


@pytest.fixture
def board(tiny_sd: Path) -> Board:
    return Board(
        name="tiny", backbone=str(tiny_sd), cell="conv_in@t500:empty:none", factors=("texture", "colour"),
        pointing=("texture",), n_fit=24, n_train=60, n_test=40, resolution=32, seeds=(0, 1), n_permutations=19,
        n_resamples=10, training=TrainingSettings(seconds=0.05, k=4, expansion=2, batch=256),
    )  # fmt: skip


TOY = PeerLibrary(distribution="torch", module="torch", make=toy)
ABSENT = PeerLibrary(distribution="no-such-distribution", module="no_such", make=toy)


@pytest.mark.slow
def test_all_rows_stand_on_the_same_samples_and_ones_own_is_added(board: Board, tmp_path: Path) -> None:
    own = make(TopKConfig(k=4, n_latents=20), 16, seed=5)
    folders = [to_saelens(own, tmp_path / "lens"), to_dictionary_learning(own, tmp_path / "learning")]
    lines: list[str] = []
    given = {"output": tmp_path / "kept", "variants": ("topk",), "own": {"mine": folders}}
    found = bench_dictionaries(board, libraries={"toy": TOY, "gone": ABSENT}, progress=lines.append, **given)  # type: ignore[arg-type]
    rows = {row.name: row for row in found.rows}
    assert [(row.name, row.kind) for row in found.rows] == [
        ("TopK", "ours"), ("toy", "peer"), ("mine", "own"), ("TopK, labels permuted", "control"),
        ("random directions", "control"), ("raw neurons", "control"), ("principal components", "control"),
        ("TopK, random denoiser", "control"),
    ]  # fmt: skip
    assert "not installed" in found.absent["gone"] and rows["toy"].version
    mine = rows["mine"]
    assert mine.n_latents == 20 and mine.seconds is None and mine.auroc.seeds[0] == pytest.approx(mine.auroc.seeds[1])
    assert all(len(row.factors) == 2 and row.factors[0].pointing is not None for row in found.rows)
    assert rows["raw neurons"].fvu is None and rows["TopK"].fvu is not None and len(rows["TopK"].steps) == 2
    assert rows["TopK, labels permuted"].steps == rows["TopK"].steps  # the same dictionaries
    assert rows["TopK, labels permuted"].n_with_latent == 0 and not found.not_measured
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")}
    again = bench_dictionaries(board, libraries={"toy": TOY}, **given)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")} == before  # nothing is trained
    assert again.rows == found.rows
    longer = replace(board, training=replace(board.training, seconds=0.06), seeds=(0,))
    bench_dictionaries(longer, libraries={}, output=tmp_path / "kept", variants=("topk",))
    assert any(path.stat().st_mtime_ns != before[path] for path in (tmp_path / "kept").rglob("*.json"))


def test_latents_that_equal_the_factors_are_counted(board: Board) -> None:
    ground = read_ground(replace(board, n_permutations=399))
    samples = ground.samples
    shape = samples.test.shape[2:]

    def peek(features: np.ndarray) -> np.ndarray:
        part = 0 if len(seen) < len(samples.train) * shape[0] * shape[1] else 1
        labels = np.concatenate([np.eye(5)[samples.labels[f][part]] for f in ("texture", "colour")], axis=1)
        rows = labels.repeat(shape[0] * shape[1], axis=0)
        start = len(seen) - (0 if part == 0 else len(samples.train) * shape[0] * shape[1])
        seen.extend(range(len(features)))
        return rows[start : start + len(features)]

    seen: list[int] = []
    scores, active, n_latents = score(replace(board, n_permutations=399), samples, Fitted(encode=peek, seed=0))
    assert [one.null.observed for one in scores.factors] == [1.0, 1.0] and active == 2.0 and n_latents == 10
    assert all(one.null.p == pytest.approx(1 / 400) for one in scores.factors) and scores.residual is None


def test_wrong_dictionaries_are_refused(board: Board, tmp_path: Path) -> None:
    narrow = make(TopKConfig(k=2, n_latents=8), 6, seed=0).save_pretrained(tmp_path / "a", cell="conv_in@t500")
    with pytest.raises(ConfigError, match="encodes 6 numbers"):
        bench_dictionaries(board, output=tmp_path, variants=(), libraries={}, own={"mine": [narrow]})
    with pytest.raises(UnknownName, match="gated"):
        bench_dictionaries(board, output=tmp_path, variants=("gated",), libraries={})


def test_places_become_rows_in_the_order_of_the_map() -> None:
    maps = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    assert as_rows(maps)[1].tolist() == maps[0, :, 0, 1].tolist() and as_rows(maps).shape == (8, 3)
    assert as_rows(maps[:, :, 0, 0]).shape == (2, 3)


def test_shipped_boards_have_at_most_a_row_per_variant_and_their_own_factors() -> None:
    assert BOARDS["emoji"].factors == ("style", "skin_tone", "label") and BOARDS["emoji"].data == "emoji"
    assert set(leaderboard.TITLES) == set(leaderboard.OURS)
