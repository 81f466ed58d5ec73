import json

import pytest
import torch
import torch.nn.functional as F

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.registry import probes
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.direction import Direction
from diffprobe.probes.direction.mean_difference import mean_difference
from diffprobe.probes.direction.ridge import ridge
from diffprobe.probes.shuffled_labels import hash_keys
from diffprobe.training.direction import DirectionModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import Families

CELL = "mid_block@t10:empty:mean"


def run(toy, tmp_path, name, positive="noto", negative="twemoji", **settings):
    source = toy()
    config = TrainerConfig(**{"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 40, **settings})
    probe = probes("direction").load(name)
    params = probe.Config(positive=positive, negative=negative, n_random=50, n_shuffles=4)
    module = DirectionModule(
        name,
        params,
        axes=params.axes([CELL], {"style": source.attributes["style"]}),
        widths={CELL: 12},
        settings=config,
    )
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
        if module.is_trained:
            trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def sides(toy, split):
    table = toy().table(split)
    style = table.attributes["style"]
    return table.features[CELL][style < 2], style[style < 2] == 0


@pytest.mark.parametrize(("name", "by_hand"), [("mean_difference", mean_difference), ("ridge", ridge)])
def test_closed_forms_equal_the_notebook_functions(toy, tmp_path, name, by_hand):
    module = run(toy, tmp_path, name)
    x, positive = sides(toy, "train")
    expected = by_hand(x, positive)
    found = module.directions()[0]
    torch.testing.assert_close(found.vector, F.normalize(expected, dim=0).float(), rtol=1e-5, atol=1e-6)
    x, positive = sides(toy, "test")
    record = module.records("test")[0]
    assert record.value == pytest.approx(float(auroc((x.double() @ expected)[:, None], positive)), abs=1e-9)
    assert record.n == len(x) and record.detail["positive"] == "noto"


@pytest.mark.parametrize("name", ["mean_difference", "ridge", "ridge_cv", "logistic"])
def test_beats_its_controls(toy, tmp_path, name):
    module = run(toy, tmp_path, name)
    record = module.records("val")[0]
    assert record.value > 0.8
    assert record.controls["chance"] == 0.5
    assert record.value > record.controls["random_direction"] + record.detail["control_spread"]["random_direction"]
    assert record.value > record.controls["shuffled_labels"] + 0.1
    x, positive = sides(toy, "train")
    direction = module.directions()[0]
    shift = x[positive].mean(0) - x[~positive].mean(0)
    assert direction.scale == pytest.approx(float(shift @ direction.vector), rel=1e-4) and direction.scale > 0
    assert float(direction.vector.norm()) == pytest.approx(1, abs=1e-6)


def test_the_penalty_is_chosen_by_folds_of_groups(toy, tmp_path):
    module = run(toy, tmp_path, "ridge_cv")
    (record,) = module.records("val")
    detail = record.detail
    assert record.value > 0.8 and record.value > record.controls["shuffled_labels"] + 0.1
    assert detail["alpha"] == detail["alphas"][detail["cv_squared_error"].index(min(detail["cv_squared_error"]))]
    assert detail["cv_folds"] == 5 and detail["group"] == "sample" and sum(detail["control_alpha"].values()) == 4
    x, positive = sides(toy, "train")
    keys = [
        key
        for key, style in zip(toy().table("train").keys, toy().table("train").attributes["style"], strict=True)
        if style < 2
    ]
    names = [f"sample {key}" for key in hash_keys(keys).tolist()]
    by_hand = Direction.fit(x, positive, estimator="ridge_cv", groups=names)
    torch.testing.assert_close(module.directions()[0].vector, by_hand.vector, rtol=1e-5, atol=1e-6)


def test_controls_are_distributions_with_p(toy, tmp_path):
    module = run(toy, tmp_path, "ridge")
    record = module.records("val")[0]
    assert set(record.detail["control_nulls"]) == {"random_direction", "shuffled_labels"}
    for name, n in (("random_direction", 50), ("shuffled_labels", 4)):
        null = record.detail["control_nulls"][name]
        assert null["n"] == n and null["smallest_p"] == pytest.approx(1 / (n + 1)) and null["p"] >= null["smallest_p"]
        assert null["mean"] == pytest.approx(record.controls[name], abs=1e-9)
        assert null["mean"] < null["percentile_95"] <= 1 and 0 <= null["quantile"] <= 1
        assert (null["p"] == null["smallest_p"]) == (null["quantile"] == 1)
    found = record.detail["control_nulls"]["shuffled_labels"]
    assert found["group_by"] == "sample" and found["groups_permuted_within"] == 0 and found["changed"] > 0.3
    assert json.loads(json.dumps(record.detail)) == record.detail


def test_shuffles_keep_families(tmp_path):
    source = Families()
    probe = probes("direction").load("mean_difference")
    params = probe.Config(positive=("noto", "wild"), negative=("twemoji", "tame"), n_shuffles=3)
    axes = params.axes([CELL], {name: source.attributes[name] for name in ("style", "kind")})
    config = TrainerConfig(accelerator="cpu", enable_progress_bar=False)
    module = DirectionModule("mean_difference", params, axes=axes, widths={CELL: 12}, settings=config)
    with quiet():
        make_trainer(config, run_dir=tmp_path).test(module, datamodule=source, verbose=False)
    table = source.table("train")
    batch, whole = table.take(torch.arange(len(table))), table.attributes["family"] >= 0
    for i, name in enumerate(("style", "kind")):
        known, sides = module._sides(i, batch, hash_keys(batch.keys))
        for family in table.attributes["family"][known & whole].unique():
            inside = sides[table.attributes["family"][known] == family]
            if name == "kind":
                assert (inside == inside[:1]).all()
            elif len(inside.T[0].unique()) == 2:
                assert (inside.sum(0) == inside[:, 0].sum()).all()
        assert not sides[:, 1].equal(sides[:, 0]) and not sides[:, 1].equal(sides[:, 2])
    style, kind = (record.detail["control_nulls"]["shuffled_labels"] for record in module.records("test"))
    assert style["group_by"] == kind["group_by"] == "family"
    assert (kind["groups_permuted_whole"], kind["groups_permuted_within"]) == (24, 0)  # 23 families and one sample
    assert style["groups_permuted_within"] > 5


def test_few_families_bound_p(tmp_path):
    """Two families of one kind each have two orders: no number of shuffles shows more than that."""

    class Two(Families):
        def table(self, split):
            table = super().table(split)
            table.attributes["kind"] = table.attributes["family"] = torch.arange(len(table)) % 2
            return table

    probe = probes("direction").load("mean_difference")
    params = probe.Config(positive="wild", negative="tame", n_shuffles=9)
    axes = params.axes([CELL], {"kind": ("tame", "wild")})
    config = TrainerConfig(accelerator="cpu", enable_progress_bar=False)
    module = DirectionModule("mean_difference", params, axes=axes, widths={CELL: 12}, settings=config)
    with quiet():
        make_trainer(config, run_dir=tmp_path).test(module, datamodule=Two(), verbose=False)
    null = module.records("test")[0].detail["control_nulls"]["shuffled_labels"]
    assert null["smallest_p"] == pytest.approx(0.5) and null["p"] >= 0.5 and null["n"] == 9


def test_swapping_the_ends_turns_it_round(toy, tmp_path):
    one, two = run(toy, tmp_path, "ridge"), run(toy, tmp_path, "ridge", positive="twemoji", negative="noto")
    torch.testing.assert_close(one.directions()[0].vector, -two.directions()[0].vector, rtol=1e-4, atol=1e-6)
    assert two.records("val")[0].value == pytest.approx(one.records("val")[0].value, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "split"),
    [("mean_difference", "train"), ("mean_difference", "test"), ("logistic", "train"), ("logistic", "val")],
)
def test_features_that_are_no_numbers_are_named(toy, tmp_path, name, split):
    class Spoilt(toy):
        def table(self, asked):
            table = super().table(asked)
            if asked == split:
                table.features[CELL][[3, 7], 1] = float("nan")
            return table

    with pytest.raises(NonFinite, match=rf"cell '{CELL}' has NaN .* in 2 samples, the first is '{split}/3'"):
        run(Spoilt, tmp_path, name, max_epochs=1)


def test_clipping_is_refused_where_something_is_trained(toy, tmp_path):
    with pytest.raises(ConfigError, match="gradient_clip"):
        run(toy, tmp_path, "logistic", gradient_clip=1.0)
    assert run(toy, tmp_path, "ridge", gradient_clip=1.0).records("test")  # a closed form has no gradient


def test_an_end_without_samples_is_an_error(toy, tmp_path):
    class OneStyle(toy):
        def table(self, split):
            table = super().table(split)
            table.attributes["style"][:] = 0
            return table

    with pytest.raises(EmptyClass, match=r"0 of 'twemoji'"):
        run(OneStyle, tmp_path, "mean_difference")
