"""Settings of `eval segmentation` that are refused."""

import pytest

from diffprobe.cli.main import main
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("labels=[16,4]", "labels"),
        ("labels=[1]", "labels"),
        ("pool=10", "pool=10"),
        ("l2=[0]", "l2="),
        ("l2=[1,0.1]", "l2="),
        ("label_draws=0", "label_draws"),
        ("label_draws=2 pool=64 labels=[64]", "label_draws=2"),
        ("head=convolutional l2=[0.1]", "l2="),
        ("steps=0", "steps"),
        ("ignore=[7]", "7"),
        ("ignore=[300]", "300"),
        ("classes.hat=[999]", "999"),
        ("classes.hat=[7]", "7"),
        ("features.pool=mean", "features.pool"),
        ("data.limit=10", "data.limit"),
        ("controls=[pixels,pixels]", "controls"),
    ],
)
def test_settings_without_meaning_are_refused(setting: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load("scenes/segmentation", setting.split(), kinds=("evaluate_segmentation",))


def test_the_cost_counts_both_denoisers() -> None:
    config = load("scenes/segmentation", [], kinds=("evaluate_segmentation",))
    images = 3 * 64 + config.n_val + config.n_test
    assert config.cost_lines[0] == f"denoiser passes of at most {images} images: {2 * images:,}"
    assert f"random denoiser: {2 * images:,} more" in config.cost_lines[1]
    assert config.cost_lines[-1] == "readouts of each cell: 36"  # 3 numbers of labels, 3 draws, 4 penalties
    one = load("scenes/segmentation", ["label_draws=1", "controls=[]"], kinds=("evaluate_segmentation",))
    assert one.cost_lines[0] == "denoiser passes of 364 images: 728" and len(one.cost_lines) == 2


def test_a_head_has_its_own_steps_and_penalty() -> None:
    config = load("scenes/segmentation", ["head=convolutional"], kinds=("evaluate_segmentation",))
    assert (config.n_steps, config.penalties) == (200, (0.01,))


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("segmentation", "voc2012/sd21"), ("segmentation", "voc2012/cleandift"), ("segmentation", "ade20k/sd15"),
        ("depth", "nyuv2/sd21"), ("depth", "nyuv2/cleandift"),
    ],
)  # fmt: skip
def test_the_presets_of_benchmarks_are_valid_offline_and_state_their_cost(
    verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(name, [], kinds=(f"evaluate_{verb}",))
    assert found.labels[-1] <= found.pool and found.data.val_split != found.data.test_split
    if found.published is not None:
        score, _, labels = found.published.metric.rpartition("_labels")
        assert int(labels) == found.labels[-1] and score in ("miou_pooled", "rmse")
        assert found.published.provenance.startswith("second hand: ") and found.published.tolerance > 0
    assert main(["eval", verb, f"experiment={name}", "--check"]) == 0
    assert "denoiser passes of" in capsys.readouterr().out


def test_the_classes_of_the_benchmarks_are_complete() -> None:
    for name, values in (("voc2012/sd21", range(21)), ("ade20k/sd15", range(1, 151))):
        classes = load(name, [], kinds=("evaluate_segmentation",)).classes
        assert sorted(value for own in classes.values() for value in own) == list(values)
