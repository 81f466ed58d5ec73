import subprocess
import sys

import pytest

from diffprobe.config.compose import load_run
from diffprobe.config.controls import LADDER
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.runs.plan import plan


@pytest.mark.slow
def test_faults_are_found_before_anything_is_loaded(run, tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'probe.params.kk'"):
        plan(run("probe=topk", "probe.params.kk=3"))
    with pytest.raises(UnknownName, match="unknown probe of kind 'sae' 'topp'"):
        plan(run("probe=topk", "probe.name=topp"))
    with pytest.raises(ConfigError, match="control=shuffled_labels"):
        plan(run("probe=topk", "control=shuffled_labels"))
    with pytest.raises(ConfigError, match="missing key 'probe.params.positive'"):
        plan(run("probe=ridge"))
    for probe in (["probe=linear"], ["probe=ridge", "probe.params.positive=noto"]):
        with pytest.raises(ConfigError, match="shuffle=rows: a probe of kind '.*'"):
            plan(run(*probe, "features.shuffle=rows"))
    for buffer in ("probe.params.row_buffer=8", "probe.grid.row_buffer=[0,8]"):
        with pytest.raises(ConfigError, match="features.shuffle=rows with probe.params.row_buffer"):
            plan(run("probe=topk", buffer, "features.shuffle=rows"))
    for step in ("probe.params.step=dense", "probe.grid.step=[sparse,dense]"):
        with pytest.raises(ConfigError, match="probe.batched=true with probe.params.step=dense"):
            plan(run("probe=topk", "probe.grid.k=[4,8]", step, "probe.batched=true"))
        plan(run("probe=topk", "probe.grid.k=[4,8]", step))
    with pytest.raises(ConfigError, match="step = dense .*'jumprelu'"):
        plan(run("probe=jumprelu", "probe.params.step=dense"))
    direction = ["probe.params.positive=noto", "trainer.learning_rate=0.1", "trainer.max_steps=3"]
    with pytest.raises(ConfigError, match="trainer.learning_rate, trainer.max_steps: probe 'ridge' has a closed form"):
        plan(run("probe=ridge", *direction))
    plan(run("probe=logistic", *direction))
    for probe in (["probe=linear"], ["probe=logistic", "probe.params.positive=noto"]):
        with pytest.raises(ConfigError, match="trainer.gradient_clip=1.0"):
            plan(run(*probe, "trainer.gradient_clip=1.0"))
    with pytest.raises(ConfigError, match="probe.targets"):
        plan(run("probe=topk", "probe.targets=[style]"))
    with pytest.raises(ConfigError, match="data.shuffle_buffer=8 has no effect on stored features"):
        run("probe=topk", "data.shuffle_buffer=8")
    run("probe=topk", "data.shuffle_buffer=8", "features.source=live")
    with pytest.raises(ConfigError, match="shuffle=rows.*source=live.*probe.params.row_buffer=N"):
        run("probe=topk", "features.shuffle=rows", "features.source=live")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_control_needs_no_quotes_in_yaml(tmp_path, monkeypatch):
    for control in ("none", "shuffled_labels", *LADDER):
        file = tmp_path / "experiments" / "paper" / f"{control}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"control: {control}\n")
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    for control in ("none", "shuffled_labels", *LADDER):
        config = load_run(f"paper/{control}")
        assert config.control == control and plan(config).tree["control"] == control


def test_an_unknown_kind_or_metric_is_named_with_the_nearest(run):
    with pytest.raises(ConfigError, match="'clasifier'(.|\n)*nearest: classifier"):
        plan(run("probe=linear", "probe.kind=clasifier"))
    with pytest.raises(UnknownName, match="'acuracy'(.|\n)*nearest: accuracy(.|\n)*balanced_accuracy"):
        plan(run("probe=linear", "probe.metrics=[acuracy]"))
    with pytest.raises(UnknownName, match="'fvu'"):  # a metric of another kind
        plan(run("probe=linear", "probe.metrics=[fvu]"))
    with pytest.raises(ConfigError, match="probe.metrics=.*'sae'"):
        plan(run("probe=topk", "probe.metrics=[accuracy]"))


def test_a_choice_of_metrics_is_part_of_the_digest_and_the_default_is_not(run):
    one, other = (plan(run("probe=linear", *metrics)) for metrics in ([], ["probe.metrics=[accuracy]"]))
    assert "metrics" not in one.tree["probe"] and one.run_dir != other.run_dir


def test_views_are_part_of_the_digest_and_their_absence_is_not(run):
    views = ["features.views.flip=0.5", "features.views.n=2"]
    one, other = (plan(run("probe=linear", *more)) for more in ([], views))
    assert "views" not in one.tree["features"] and one.run_dir != other.run_dir
    assert other.tree["features"]["views"]["n"] == 2


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["probe=linear_cv", "features.views.n=2"], "features.views: probe 'linear_cv' has a closed form"),
        (["probe=knn", "features.views.n=2"], "features.views: probe 'knn'"),
        (["probe=ridge", "probe.params.positive=noto", "features.views.n=2"], "features.views: probe 'ridge'"),
        (["probe=linear", "features.views.n=3"], "views.n=3 with trainer.max_epochs=2.* 1 are never read"),
        (["probe=linear", "features.views.n=5", "features.source=live"], "views.n=5 with trainer.max_epochs=2"),
    ],
)
def test_views_that_nothing_reads_are_refused(run, settings, facts):
    with pytest.raises(ConfigError, match=facts):
        plan(run("features.views.flip=0.5", *settings))


def test_views_are_for_every_probe_that_is_trained_in_steps(run):
    views = ["features.views.flip=0.5", "features.views.n=5", "features.views.use=all"]
    for probe in (["probe=linear"], ["probe=topk"], ["probe=logistic", "probe.params.positive=noto"]):
        plan(run(*probe, *views))
    plan(run("probe=linear", "features.source=live", "features.views.flip=0.5"))


def test_how_long_a_storage_is_waited_for_is_not_part_of_a_run(run):
    one, other = (plan(run("probe=linear", f"data.storage_patience={seconds}")) for seconds in (0, 7))
    assert one.tree == other.tree and one.run_dir == other.run_dir and "storage_patience" not in one.tree["data"]


@pytest.mark.slow
def test_a_run_is_validated_without_what_trains_it():
    """`diffprobe config` validates; libraries that only training or opening a backbone needs are not imported."""
    code = """
import sys
from diffprobe.config.compose import load
from diffprobe.runs.plan import plan
assert "torch" not in sys.modules
plan(load(None, ["experiment=emoji/classifier"]))
print([name for name in ("lightning", "diffusers", "transformers", "wandb") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
