"""The leaderboard on a tiny model: rows, controls, dictionaries of one's own, and what is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffprobe.benchmarks import leaderboard
from diffprobe.benchmarks.leaderboard import Fitted, bench_dictionaries, score
from diffprobe.benchmarks.leaderboard_ground import Board, as_rows, read_ground
from diffprobe.benchmarks.peer_dictionaries import PeerLibrary
from diffprobe.benchmarks.timed_dictionaries import TrainingSettings
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.certificates.dictionary import saved_encoder
from diffprobe.probes.sae.convert import to_dictionary_learning, to_saelens
from diffprobe.probes.sae.open_folder import open_autoencoder
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


@pytest.mark.slow
def test_the_error_of_a_transcoder_is_that_of_its_target(board: Board, tmp_path: Path) -> None:
    paired = replace(board, target_tap="up_blocks.1", seeds=(0,))
    lines: list[str] = []
    given = {"output": tmp_path, "variants": ("transcoder",), "libraries": {}}
    found = bench_dictionaries(paired, progress=lines.append, **given)  # type: ignore[arg-type]
    row, target = found.rows[0], read_ground(paired, with_target=True).target
    assert (row.name, row.note) == ("transcoder", "reconstructs up_blocks.1@t500:empty:none") and target is not None
    assert found.facts["transcoder"] == row.note and "0.95" in found.facts["optimiser of ours"]
    sae, _ = open_autoencoder(tmp_path / "tiny" / "transcoder" / "seed0")
    with torch.no_grad():
        x, y = (torch.from_numpy(as_rows(part)) for part in (read_ground(board).samples.test, target.test))
        share = float((y - sae(x)[0]).double().square().sum() / (y - y.mean(0)).double().square().sum())
    assert row.fvu is not None and row.fvu.value == pytest.approx(share, rel=1e-4)
    with pytest.raises(ConfigError, match="needs a dictionary with a decoder"):
        score(paired, read_ground(board).samples, Fitted(encode=saved_encoder(sae), seed=0, sae=sae))
    folder = {"mine": [tmp_path / "tiny" / "transcoder" / "seed0"]}
    with pytest.raises(ConfigError, match=r"(?s)'mine' is a transcoder of 'up_blocks.1'.*certify"):
        bench_dictionaries(board, output=tmp_path, variants=(), libraries={}, own=folder)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_stopped_board_continues_with_the_rows_that_are_missing(board: Board, tmp_path: Path) -> None:
    given = {"output": tmp_path, "variants": ("topk",), "libraries": {}}

    def stop(line: str) -> None:
        if line.startswith("raw neurons"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_dictionaries(board, progress=stop, **given)  # type: ignore[arg-type]
    lines: list[str] = []
    found = bench_dictionaries(board, progress=lines.append, **given)  # type: ignore[arg-type]
    assert len(found.rows) == 6 and not [line for line in lines if line.startswith("TopK, seed")]
    assert [line for line in lines if line.startswith("raw neurons")]
    other: list[str] = []
    bench_dictionaries(replace(board, n_permutations=29), progress=other.append, **given)  # type: ignore[arg-type]
    assert "TopK, seed 0: certificate" in other


def test_every_variant_of_ours_has_a_title() -> None:
    assert set(leaderboard.TITLES) == set(leaderboard.OURS)
