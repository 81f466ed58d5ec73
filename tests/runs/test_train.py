"""The main job on tiny real things: shards through a frozen pipeline into probes and result files."""

import json

import pytest
import torch

from diffprobe.config.controls import LADDER
from diffprobe.core.errors import ConfigError, StoreIncomplete, UnknownName
from diffprobe.core.result import SCHEMA_VERSION, read_result
from diffprobe.probes.classifier.linear import LinearProbe
from diffprobe.probes.direction import Direction
from diffprobe.probes.sae.topk import KSAE
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import make_source, plan, train

CELL, OTHER = "mid_block@t20:empty:mean", "up_blocks.0@t20:empty:mean"


def from_both(run, *settings):
    """Run once on stored and once on live features; return both results and the folders of their probes."""
    extract_run(run(*settings), progress=False)
    paths = [train(run(*settings, f"features.source={source}")) for source in ("stored", "live")]
    return [read_result(path) for path in paths], [path.parent / "probes" for path in paths]


def assert_equal(stored, live):
    for a, b in zip(stored.metrics, live.metrics, strict=True):
        assert (a.name, a.split, a.cell, a.target, a.n) == (b.name, b.split, b.cell, b.target, b.n)
        assert b.value == pytest.approx(a.value, abs=1e-5), (a.name, a.split, a.cell, a.target)
        assert b.controls == pytest.approx(a.controls, abs=1e-5), (a.name, a.split, a.cell, a.target)


@pytest.mark.slow
def test_classifier_from_store_and_live_agree(run):
    # All of the training set is one batch, so that neither source orders what the other does not.
    (stored, live), probes = from_both(run, "probe=linear", "probe.targets=[label,style]", "data.batch_size=16")
    assert stored.kind == "classifier" and stored.wall_time_s > 0
    assert {r.cell for r in stored.metrics} == {CELL, OTHER}
    assert {r.split for r in stored.metrics} == {"val", "test"} and {r.n for r in stored.metrics} == {4}
    assert all(set(r.controls) == {"chance", "shuffled_labels"} for r in stored.metrics)
    assert_equal(stored, live)
    for cell in (CELL, OTHER):
        one, other = (LinearProbe.from_pretrained(path / "style" / cell.replace(":", ".")) for path in probes)
        torch.testing.assert_close(other.mean, one.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.inverse_std, one.inverse_std, rtol=1e-3, atol=0)
        torch.testing.assert_close(other.weight, one.weight, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_run_on_a_validation_split_cut_out_of_train(run):
    cut = ["data.val_split=held", "data.val_fraction=0.3", "data.val_group=colour", "data.batch_size=16"]
    (stored, live), _ = from_both(run, "probe=linear", "probe.targets=[style]", *cut)
    assert_equal(stored, live)
    counts = {record.split: record.n for record in stored.metrics}
    source = make_source(run("probe=linear", *cut))
    assert counts == {"val": len(source.table("held")), "test": 4} and 0 < counts["val"] < 16
    assert stored.artifacts["input/shards"] == source.request.shard_set.digest
    assert stored.config["data"]["val_fraction"] == 0.3


@pytest.mark.slow
def test_directions_from_store_and_live_agree(run):
    named = ["probe.targets=[style]", "probe.params.positive=noto", "probe.params.n_random=20"]
    (stored, live), probes = from_both(run, "probe=mean_difference", f"probe.cell={CELL}", *named)
    assert_equal(stored, live)
    one, other = (Direction.load(path / "style" / CELL.replace(":", ".")) for path in probes)
    torch.testing.assert_close(other.vector, one.vector, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_folder_is_named_by_the_digest_and_holds_probes_and_result(run, tmp_path):
    config = run("probe=linear", "probe.targets=[style]", "seed=3", "logger=csv")
    extract_run(config, progress=False)
    path = train(config)
    result = read_result(path)
    assert path == tmp_path / "classifier" / result.config_digest[:12] / "result.json"
    assert result.run == path.parent.name and result.seeds["run"] == 3
    assert result.config["probe"]["targets"] == ["style"] and "output" not in result.config
    probe = LinearProbe.from_pretrained(path.parent / "probes" / "style" / CELL.replace(":", "."))
    assert probe.n_classes == 2 and result.artifacts["input/shards"]
    assert (path.parent / "last.ckpt").exists() and (path.parent / "curves" / "metrics.csv").exists()
    assert plan(run("probe=linear", "probe.targets=[style]", "seed=4", "logger=csv")).run_dir != path.parent
    assert plan(run("probe=linear", "probe.targets=[style]", "seed=3", "logger=csv")).run_dir == path.parent


@pytest.mark.slow
def test_a_seed_that_changes_nothing_is_refused(run):
    whole = ["probe=linear", "probe.targets=[label]", "probe.params.controls=[]", "data.batch_size=16"]
    extract_run(run(*whole), progress=False)
    first = read_result(train(run(*whole))).metrics
    with pytest.raises(ConfigError, match=r"seed=1 has no effect(.|\n)*features.seed"):
        train(run(*whole, "seed=1"))
    drawn = [*whole[:2], "data.batch_size=16"]  # its control depends on the seed
    one, other = (read_result(train(run(*drawn, f"seed={seed}"))).metrics for seed in (0, 1))
    assert one[0].value == other[0].value == first[0].value
    ordered = [*whole[:3], "data.batch_size=8", "seed=1"]
    assert read_result(train(run(*ordered))).metrics


@pytest.mark.slow
def test_a_finished_run_is_trained_anew_with_the_same_numbers(run):
    config = run("probe=linear", "probe.targets=[label]")
    extract_run(config, progress=False)
    first = read_result(train(config))
    second = read_result(train(config))
    assert first.metrics == second.metrics


REFUSALS = [
    pytest.param(
        ["trainer.accelerator=gpu"],
        "no GPU",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without"),
    ),
    (["trainer.accelerator=cpu", "logger=wandb"], "WANDB_MODE=of-line"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSALS)
@pytest.mark.parametrize("source", ["stored", "live"])
def test_a_run_that_is_refused_loses_nothing(run, monkeypatch, settings, words, source):
    monkeypatch.setenv("WANDB_MODE", "of-line")
    probe = ["probe=topk", "probe.cell=mid_block@t20", "probe.params.n_latents=40", "probe.grid.k=[2,4]"]
    config = run(*probe, f"features.source={source}", *settings)
    if source == "stored":
        extract_run(config, progress=False)
    folder = plan(config).run_dir
    for name in ("result.json", "last.ckpt", "curves/metrics.csv", "members/k=2/result.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the run before")
    before = {path: path.is_file() and path.read_text() for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert {path: path.is_file() and path.read_text() for path in folder.rglob("*")} == before


def test_a_grid_that_starts_anew_forgets_the_members_of_before(run, monkeypatch):
    config = run("probe=topk", "probe.cell=mid_block@t20", "probe.params.n_latents=40", "probe.grid.k=[2,4]")
    extract_run(config, progress=False)
    folder = train(config).parent

    def stops(*args, **options):
        raise RuntimeError("stopped")

    monkeypatch.setattr("lightning.Trainer.fit", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config)
    assert not list(folder.rglob("result.json")) and not (folder / "last.ckpt").exists()


def test_the_numbers_of_a_grid_reach_the_tracker_by_member(run, monkeypatch):
    from diffprobe.training import loggers

    config = run("probe=topk", "probe.cell=mid_block@t20", "probe.params.n_latents=40", "probe.grid.k=[2,4]")
    extract_run(config, progress=False)
    sent = {}
    monkeypatch.setattr(loggers, "finish", lambda logger, result, members, media: sent.update(members))
    folder = train(config).parent
    assert set(sent) == {"k=2", "k=4"}
    for name, member in sent.items():
        assert member.metrics and member.metrics == read_result(folder / "members" / name / "result.json").metrics


def test_sae(run):
    config = run("probe=topk", f"probe.cell={CELL}", "probe.params.k=4", "probe.params.n_latents=40")
    extract_run(config, progress=False)
    path = train(config)
    result = read_result(path)
    by_name = {(r.name, r.split): r for r in result.metrics}
    assert {split for _, split in by_name} == {"train", "val", "test"}
    assert by_name["l0", "test"].value <= 4 and by_name["fvu", "train"].n == 16
    sae = KSAE.from_pretrained(path.parent / "probes" / "sae")
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    with torch.no_grad():
        x = make_source(config).table("test").features[CELL]
        residual = (x - sae(x)[0]).double().square().sum()
    expected = float(residual / (x - x.mean(0)).double().square().sum())
    assert by_name["fvu", "test"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stored", "live"])
def test_one_sae_for_tokens_of_all_timesteps(run, source):
    settings = ["features.timesteps=[20,500]", "features.pool=tokens2", f"features.source={source}"]
    config = run("probe=topk", "probe.cell=mid_block", "probe.params.k=4", "probe.params.n_latents=40", *settings)
    if source == "stored":
        extract_run(config, progress=False)
    result = read_result(train(config))
    found = {(r.split, r.cell): r for r in result.metrics if r.name == "fvu"}
    one, other = "mid_block@t20:empty:tokens2", "mid_block@t500:empty:tokens2"
    assert {cell for split, cell in found if split == "test"} == {None, one, other}
    assert found["train", None].n == 16 * 2 * 2 and found["train", one].n == 16 * 2
    with pytest.raises(ConfigError, match=r"probe.cell=.*mid_block@t\*"):
        train(run("probe=topk", *settings))
    with pytest.raises(ConfigError, match="reads one cell; .* 2"):
        train(run("probe=ridge", "probe.cell=mid_block", "probe.params.positive=noto", *settings))


@pytest.mark.slow
def test_an_sae_on_a_permutation_of_tokens_of_all_timesteps(run):
    settings = ["features.timesteps=[20,500]", "features.pool=tokens2", "probe.params.k=4", "probe.params.n_latents=40"]
    mixed = ["probe=topk", "probe.cell=mid_block", *settings, "features.shuffle=rows", "features.placement=memory"]
    extract_run(run(*mixed), progress=False)
    result = read_result(train(run(*mixed)))
    assert result.config["features"]["shuffle"] == "rows" and result.config["features"]["placement"] == "memory"
    found = {(r.split, r.cell): r for r in result.metrics if r.name == "fvu"}
    assert found["train", None].n == 16 * 2 * 2 and found["train", None].value < 1
    whole = read_result(train(run(*mixed[:-2])))
    assert "shuffle" not in whole.config["features"]  # the digest of runs without it is what it was
    assert [(r.name, r.n) for r in whole.metrics] == [(r.name, r.n) for r in result.metrics]
    assert [r.value for r in whole.metrics] != [r.value for r in result.metrics]


@pytest.mark.parametrize("name", ["mean_difference", "ridge", "logistic"])
def test_direction(run, name):
    config = run(
        f"probe={name}",
        "probe.cell=mid_block@t20",
        "probe.targets=[style,group]",
        "probe.params.positive=[noto,round]",
        "probe.params.n_random=20",
    )
    extract_run(config, progress=False)
    path = train(config)
    result = read_result(path)
    assert {r.target for r in result.metrics} == {"style", "group"} and {r.probe for r in result.metrics} == {name}
    assert all(0 <= r.value <= 1 and set(r.controls) >= {"random_direction", "shuffled_labels"} for r in result.metrics)
    found = Direction.load(path.parent / "probes" / "style" / CELL.replace(":", "."))
    assert float(found.vector.norm()) == pytest.approx(1, abs=1e-6) and found.negative == "other than noto"


@pytest.mark.parametrize("control", [*LADDER, "shuffled_labels"])
def test_a_run_that_is_a_control(run, control):
    config = run("probe=linear", "probe.targets=[style]", f"control={control}")
    extract_run(config, progress=False)
    result = read_result(train(config))
    assert result.config["control"] == control
    cells = {record.cell for record in result.metrics}
    own = {"raw_pixels": "pixels@t0:empty:mean", "vae_latents": "latents@t0:empty:mean"}
    own["text_encoder"] = "text@t0:caption:mean"
    assert cells == ({own[control]} if control in own else {CELL, OTHER})
    assert ("shuffled_labels" in result.metrics[0].controls) == (control != "shuffled_labels")


def test_an_interrupted_run_continues(run, monkeypatch):
    from diffprobe.training.classifier import ClassifierModule

    config = run("probe=linear", "probe.targets=[label]", "trainer.max_epochs=4", "seed=5")
    extract_run(config, progress=False)
    whole = read_result(train(config))
    folder = plan(config).run_dir
    (folder / "result.json").unlink()
    step = ClassifierModule.training_step

    def stops(self, batch, batch_idx):
        if self.current_epoch == 2:
            raise RuntimeError("stopped")
        return step(self, batch, batch_idx)

    (folder / "last.ckpt").unlink()
    monkeypatch.setattr(ClassifierModule, "training_step", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config)
    epochs = []
    monkeypatch.setattr(ClassifierModule, "training_step", lambda *a: epochs.append(a[0].current_epoch) or step(*a))
    assert read_result(train(config)).metrics == whole.metrics
    assert set(epochs) == {2, 3}


def test_faults_that_need_the_features(run):
    extract_run(run(), progress=False)
    with pytest.raises(ConfigError, match="reads one cell; .* 2"):
        train(run("probe=topk"))
    with pytest.raises(UnknownName, match="unknown target 'styl'"):
        train(run("probe=linear", "probe.targets=[styl]"))
    with pytest.raises(StoreIncomplete, match="no feature store"):
        train(run("features.store=elsewhere-that-is-not-there"))


def test_the_result_is_json_with_schema_version(run):
    config = run("probe=mean_difference", f"probe.cell={CELL}", "probe.targets=[style]", "probe.params.positive=noto")
    extract_run(config, progress=False)
    tree = json.loads(train(config).read_text())
    assert tree["header"]["kind"] == "result" and tree["schema_version"] == SCHEMA_VERSION


def test_a_classifier_that_is_solved_has_no_steps_and_keeps_its_choices(run):
    settings = ("probe=linear_cv", "probe.targets=[style]", "probe.params.folds=2", "probe.params.l2=[1.0,0.1]")
    extract_run(run(*settings), progress=False)
    path = train(run(*settings))
    result = read_result(path)
    assert {record.split for record in result.metrics} == {"val", "test"}
    for record in result.metrics:
        assert record.probe == "linear_cv" and record.detail["converged"] and record.detail["l2"] in (1.0, 0.1)
        assert set(record.controls) == {"chance", "shuffled_labels"} and len(record.detail["cv_log_loss"]) == 2
    assert "start" not in result.seeds and "order" not in result.seeds
    assert not (path.parent / "last.ckpt").exists() and (path.parent / "predictions-test.safetensors").exists()
    probe = LinearProbe.from_pretrained(path.parent / "probes" / "style" / CELL.replace(":", "."))
    assert probe.n_classes == 2 and probe.weight.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("control", ["vae_latents", "text_encoder"])
def test_a_part_of_the_checkpoint_is_read_live_too(run, control):
    settings = ["probe=linear", "probe.targets=[style]", f"control={control}"]
    extract_run(run(*settings), progress=False)
    stored, live = (read_result(train(run(*settings, *more))) for more in ([], ["features.source=live"]))
    assert {record.cell for record in live.metrics} == {record.cell for record in stored.metrics}
    assert {r.n for r in live.metrics} == {r.n for r in stored.metrics} and len(live.metrics) == len(stored.metrics)


def test_balanced_batches_draw_the_classes_of_a_target_equally_often(run, tmp_path):
    config = run("probe=linear", "probe.targets=[colour]", "probe.balance=colour", "data.batch_size=16", "seed=2")
    extract_run(config, progress=False)
    source = make_source(config)
    drawn = [batch.attributes["colour"] for batch in source.loader("train", shuffle=True)]
    counts = torch.cat(drawn).bincount(minlength=3)
    assert counts.sum() == 16 and counts.max() - counts.min() <= 1
    assert len(torch.cat([batch.label for batch in source.loader("val", shuffle=False)])) == 4
    balanced = read_result(train(config))
    plain = read_result(train(run("probe=linear", "probe.targets=[colour]", "data.batch_size=16")))
    assert balanced.seeds["order"] == 2 and balanced.config["probe"]["balance"] == "colour"
    assert [one.n for one in balanced.metrics] == [one.n for one in plain.metrics]
    assert not any("gradient_ratio" in one.detail for one in balanced.metrics)  # of another loss than the plain one
    assert any("gradient_ratio" in one.detail for one in plain.metrics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["probe=linear", "features.source=live"], "draws samples from a store"),
        (["probe=linear", "probe.params.class_weight=balanced"], "balanced twice"),
        (["probe=linear", "probe.targets=[style]"], "is not a target of the run.*\n.*style"),
        (["probe=linear_cv"], "no training batches"),
        (["probe=topk"], "not to kind 'sae'"),
    ],
)
def test_balance_without_effect_is_refused(run, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(run("probe.targets=[colour]", *settings, "probe.balance=colour"))


@pytest.mark.slow
def test_a_classifier_on_views_is_the_same_stored_and_live(run):
    views = ["features.views.flip=0.5", "features.views.padding=4", "features.views.n=2"]
    one_batch = ["probe=linear", "probe.targets=[style]", "data.batch_size=16"]
    (stored, live), _ = from_both(run, *one_batch, *views)
    assert_equal(stored, live)
    plain = read_result(train(run(*one_batch)))
    assert [record.value for record in plain.metrics] != [record.value for record in stored.metrics]
    kept = [name for name in stored.artifacts if name.startswith("input/store")]
    assert kept == ["input/store", "input/store/view/0", "input/store/view/1"]
    assert stored.artifacts["input/store"] == plain.artifacts["input/store"]
    assert all("gradient_ratio" not in record.detail for record in stored.metrics)


@pytest.mark.slow
def test_all_views_are_rows_of_an_epoch(run):
    views = ["features.views.flip=0.5", "features.views.n=2", "features.views.use=all"]
    settings = ["probe=linear", "probe.targets=[style]", "features.taps=[mid_block]", *views]
    with pytest.raises(StoreIncomplete):
        train(run(*settings, "features.store=nowhere"))
    extract_run(run(*settings), progress=False)
    source = make_source(run(*settings))
    assert len(source.train_dataloader()) == 8 and len(source.table("train")) == 16
    result = read_result(train(run(*settings)))
    assert {record.n for record in result.metrics} == {4}


@pytest.mark.slow
def test_a_run_on_views_that_was_interrupted_ends_with_the_same_numbers(run, monkeypatch):
    from diffprobe.training.classifier import ClassifierModule

    views = ["features.views.flip=0.5", "features.views.padding=4", "features.views.n=2"]
    settings = ["probe=linear", "probe.targets=[style]", "features.taps=[mid_block]", *views]
    config = run(*settings, "trainer.checkpoint_every_steps=1")
    extract_run(config, progress=False)
    whole = read_result(train(config))
    for name in ("result.json", "last.ckpt"):
        (plan(config).run_dir / name).unlink()
    step = ClassifierModule.training_step

    def stops(self, batch, batch_idx):
        if self.trainer.global_step == 6:  # within the second epoch, which reads the second view
            raise RuntimeError("stopped")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config)
    steps: list[int] = []
    monkeypatch.setattr(
        ClassifierModule, "training_step", lambda *a: steps.append(a[0].trainer.global_step) or step(*a)
    )
    assert read_result(train(config)).metrics == whole.metrics
    assert steps == [6, 7]
