"""Selection by validation rows, equal rows for all, and what ours trains; other libraries where they are installed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.benchmarks import ksae_peers, ksae_quality
from diffprobe.benchmarks.kept_lines import KeptLines
from diffprobe.benchmarks.ksae import planted
from diffprobe.benchmarks.ksae_peers import PEERS, Peer, Trainee, Unusable, prepare, weights_of
from diffprobe.benchmarks.ksae_quality import (
    DEFAULT,
    OURS,
    QualityReport,
    QualitySetting,
    Trial,
    bench_quality,
    dead_share,
    fvu,
    ours,
    render,
    train_contender,
)
from diffprobe.benchmarks.ksae_rows import Rows
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.probes.sae import topk
from diffprobe.training.sae import SparseAutoencoderModule

SETTING = QualitySetting(k=4, n_latents=48, batch=32, lengths=(20,), rates=(1e-3, 3e-3))


@pytest.fixture(scope="module")
def rows() -> Rows:
    x = planted(640, 16, seed=0, active=4)
    return Rows(x[:512], x[512:576], x[576:], "planted")


def trial(contender: str, steps: int, *, rate: float = 1e-3, val: float, test: float, cpu_s: float = 1.0) -> Trial:
    return Trial(
        contender=contender, steps=steps, learning_rate=rate, params={}, seconds=cpu_s, cpu_s=cpu_s, val_fvu=val,
        test_fvu=test, dead=0.0,
    )  # fmt: skip


def report(*trials: Trial) -> QualityReport:
    setting = replace(SETTING, lengths=tuple(dict.fromkeys(trial.steps for trial in trials)))
    return QualityReport(
        machine="one", threads=1, name="planted", rows=(3, 2, 1), d_in=16, n_latents=48, setting=setting,
        trials=trials, versions={"sparsify": "1"}, absent={"overcomplete": "not installed"},
    )  # fmt: skip


def test_the_rate_is_chosen_on_validation_rows_whatever_the_test_rows_say() -> None:
    better = trial("sparsify", 20, rate=1e-3, val=0.2, test=0.5)
    worse = trial("sparsify", 20, rate=3e-3, val=0.3, test=0.1)
    diverged = trial("sparsify", 20, rate=1.0, val=float("nan"), test=float("nan"))
    assert report(diverged, worse, better).chosen() == [better]


def test_the_test_rows_change_no_choice(rows: Rows) -> None:
    found = train_contender(OURS, rows, SETTING)
    other = train_contender(OURS, rows._replace(test=torch.randn(64, 16)), SETTING)
    for a, b in zip(found, other, strict=True):
        assert (a.learning_rate, a.val_fvu) == (b.learning_rate, b.val_fvu) and a.test_fvu != b.test_fvu


def test_all_see_equal_rows_in_equal_order(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def recording(name: str, trainee: Trainee, scale: float) -> Trainee:
        def step(x: torch.Tensor) -> object:
            seen.setdefault(name, []).append(x / scale)
            return trainee.step(x)

        return trainee._replace(step=step)

    def theirs(sae: topk.TopK, plan: ksae_peers.Plan) -> Trainee:
        idle = Trainee(lambda x: None, lambda x: x, lambda: weights_of(sae))
        return recording("other", idle, float(sae.scale))

    monkeypatch.setitem(PEERS, "other", Peer(distribution="torch", module="torch", make=theirs))
    monkeypatch.setattr(ksae_quality, "ours", lambda sae, **run: recording("ours", ours(sae, **run), 1.0))
    setting = replace(SETTING, rates=(1e-3,))
    train_contender(OURS, rows, setting)
    untrained = train_contender("other", rows, setting)[0]
    assert len(seen["ours"]) == len(seen["other"]) == 20
    for a, b in zip(seen["ours"], seen["other"], strict=True):
        torch.testing.assert_close(a, b)
    assert len(torch.cat(seen["ours"][:16]).unique(dim=0)) == 512  # an epoch is every row once
    assert untrained.test_fvu > train_contender(DEFAULT, rows, setting)[0].test_fvu


def test_ours_takes_the_steps_of_the_module_that_trains_a_run(rows: Rows) -> None:
    """Same weights after 8 steps as with the module's own optimiser, schedule, AuxK and hooks, called by hand."""
    config = topk.Config(k=4, n_latents=48, dead_window=64, learning_rate=3e-3)
    mine, theirs = (topk.make(config, 16, seed=0) for _ in range(2))
    for sae in (mine, theirs):
        sae.initialise(rows.train.mean(0), rows.train.var(0, correction=0))
    module = SparseAutoencoderModule(config, cell="mid@t1", d_in=16, settings=TrainerConfig(), sae=theirs)
    module._total_steps = lambda: 8  # type: ignore[method-assign]
    optimiser = module.configure_optimizers()["optimizer"]
    factor = ksae_quality.step_size_factor(config, 8)
    trainee = ours(mine, steps=8, batch=32)
    for number in range(8):
        x = rows.train[number * 32 :][:32]
        trainee.step(x)
        optimiser.param_groups[0]["lr"] = 3e-3 * factor(number / 8)
        optimiser.zero_grad()
        dead = module.dead_latents.mask if module.dead_latents.is_full else None
        out = theirs.step(x, dead=dead)
        module.dead_latents.update(*out.code)
        out.loss.backward()
        theirs.remove_parallel_gradient()
        optimiser.step()
        theirs.end_step()
    torch.testing.assert_close(mine.W_dec, theirs.W_dec)
    torch.testing.assert_close(mine.b_pre, theirs.b_pre)


@pytest.mark.slow
def test_the_default_rate_recovers_a_planted_dictionary_better_than_a_third_of_it() -> None:
    """Mean cosine of each planted direction with its nearest decoder row, after equal steps from equal weights."""
    generator = torch.Generator().manual_seed(1)  # not the seed of the initial dictionary
    truth = torch.nn.functional.normalize(torch.randn(128, 32, generator=generator), dim=1)
    indices = torch.randint(128, (4096, 4), generator=generator)
    weights = torch.rand(4096, 4, generator=generator) + 0.5
    x = torch.nn.functional.embedding_bag(indices, truth, per_sample_weights=weights, mode="sum")

    def recovered(**params: float) -> float:
        sae = topk.make(topk.Config(k=4, n_latents=256, **params), 32, seed=0)
        sae.initialise(x.mean(0), x.var(0, correction=0))
        trainee = ours(sae, steps=150, batch=256)
        ksae_peers.run_steps(trainee, x, ksae_peers.Plan(batch=256, steps=150), seed=0)
        return float((truth @ sae.W_dec.detach().T).max(1).values.mean())

    assert recovered() > recovered(learning_rate=1e-3) + 0.05


@pytest.mark.parametrize("name", PEERS)
def test_another_library_learns_what_ours_learns(name: str, rows: Rows) -> None:
    try:
        prepare(name)
    except Unusable as error:
        pytest.skip(f"{name}: {error}")
    setting = replace(SETTING, lengths=(60,), rates=(3e-3,))
    theirs, mine = (train_contender(who, rows, setting)[0] for who in (name, OURS))
    assert theirs.test_fvu == pytest.approx(mine.test_fvu, rel=0.25)


def test_combinations_of_further_settings_are_tried_for_ours_only(rows: Rows) -> None:
    setting = replace(SETTING, lengths=(4,), params={"decay": (0, 0.5), "aux_weight": (0.0,)})
    found = [(t.learning_rate, dict(t.params)) for t in train_contender(OURS, rows, setting)]
    assert found == [(rate, {"decay": d, "aux_weight": 0.0}) for rate in (1e-3, 3e-3) for d in (0, 0.5)]
    assert [t.params for t in train_contender(DEFAULT, rows, setting)] == [{}]


def test_a_call_that_was_stopped_continues_after_its_finished_trainings(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(SETTING, lengths=(4, 8))
    kept = KeptLines(tmp_path / "a.jsonl", {"contender": OURS})
    whole, train, runs = train_contender(OURS, rows, setting), ksae_quality._train, list[int]()

    def stopped(*args: Any) -> Trial:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(args[3])
        return replace(train(*args), dead=float("nan"))  # as a diverged one

    monkeypatch.setattr(ksae_quality, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_contender(OURS, rows, setting, kept)
    monkeypatch.setattr(ksae_quality, "_train", lambda *args: runs.append(args[3]) or train(*args))
    found = train_contender(OURS, rows, setting, kept)
    assert runs == [4, 4, 8, 8] and [t.learning_rate for t in found] == [t.learning_rate for t in whole]
    assert [t.test_fvu for t in found] == [t.test_fvu for t in whole] and found[0].dead != found[0].dead
    more = train_contender(OURS, rows, replace(setting, rates=(1e-3, 2e-3)), kept)
    assert runs[4:] == [4, 8] and more[0].seconds == found[0].seconds  # only the new rate is trained


def test_fvu_and_dead_share_are_those_of_their_definitions(rows: Rows) -> None:
    sae = topk.make(topk.Config(k=4, n_latents=48), 16, seed=0)
    sae.initialise(rows.train.mean(0), rows.train.var(0, correction=0))
    x = rows.test
    expected = (x - sae(x)[0].detach()).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu(sae, x) == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        sae.b_enc[:12] = -1e6
    code = sae.encode(rows.train)
    silent = set(range(48)) - set(code.indices[code.values > 0].tolist())
    assert len(silent) >= 12 and dead_share(sae, rows.train) == len(silent) / 48


def test_the_report_says_what_misses_the_target() -> None:
    found = report(
        trial(OURS, 20, val=0.1, test=0.3, cpu_s=1.0), trial(OURS, 60, val=0.1, test=0.201, cpu_s=3.0),
        trial(DEFAULT, 20, val=0.1, test=0.6, cpu_s=1.0), trial(DEFAULT, 60, val=0.1, test=0.4, cpu_s=3.0),
        trial("sparsify", 20, val=0.1, test=0.25, cpu_s=2.0), trial("sparsify", 60, val=0.1, test=0.2, cpu_s=6.0),
        trial("sae-lens", 60, val=0.1, test=0.35, cpu_s=2.0),
    )  # fmt: skip
    assert found.ratio(OURS, 20) == pytest.approx(1.2) and found.ratio(OURS, 60) == pytest.approx(1.005)
    assert [(t.contender, t.steps) for t in found.behind(OURS)] == [("sparsify", 20), ("sparsify", 60)]
    text = render(found)
    assert "ours, 20 steps: 1.200 x the best other library; misses the target" in text
    assert "ours, 60 steps: 1.005 x the best other library; within the target" in text
    assert "overcomplete: not installed" in text and "| 60 | sparsify | 0.001 | 6.0 |" in text


def test_a_report_can_be_written_and_read() -> None:
    found = report(
        trial(OURS, 20, val=0.1, test=0.3), trial("sparsify", 20, rate=1.0, val=float("nan"), test=float("nan"))
    )  # fmt: skip
    text = found.to_json()
    assert json.loads(text)["trials"][1]["val_fvu"] is None and "NaN" not in text
    read = QualityReport.from_json(text)
    assert read.setting == found.setting and read.trials[0] == found.trials[0] and read.to_json() == text


def test_unknown_and_empty_settings_are_refused() -> None:
    with pytest.raises(UnknownName, match="aux_weight"):
        QualitySetting(params={"aux_wait": (1.0,)})
    with pytest.raises(UnknownName, match="learning_rate"):
        QualitySetting(params={"learning_rate": (1.0,)})  # --rates says it
    with pytest.raises(ConfigError, match="rates"):
        QualitySetting(rates=(1e-3, 1e-3))
    with pytest.raises(ConfigError, match="batch=0"):
        QualitySetting(batch=0)


def test_what_cannot_be_trained_is_refused(rows: Rows) -> None:
    with pytest.raises(ConfigError, match="512 rows are less than a batch of 4096"):
        bench_quality(rows, replace(SETTING, batch=4096), peers=())
    with pytest.raises(ConfigError, match="k = 49"):
        bench_quality(rows, replace(SETTING, k=49), peers=())
    with pytest.raises(UnknownName, match="sparsify"):
        bench_quality(rows, SETTING, peers=("sparsity",))


@pytest.mark.slow
def test_every_contender_is_trained_or_named(rows: Rows) -> None:
    absent = tuple(name for name in PEERS if ksae_peers.version(name) is None)
    found = bench_quality(rows, replace(SETTING, lengths=(3, 6)), peers=absent)
    assert found.absent == dict.fromkeys(absent, "not installed")
    assert [(t.contender, t.steps) for t in found.chosen()] == [(DEFAULT, 3), (DEFAULT, 6), (OURS, 3), (OURS, 6)]
    assert found.rows == (512, 64, 64) and found.ratio(OURS, 6) is None
