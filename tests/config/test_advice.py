"""What a message advises is accepted when it is followed."""

import shlex

import pytest

from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError
from diffprobe.runs.plan import plan

EXPERIMENTS = ("emoji/sae", "emoji/classifier", "emoji/direction")


def advice(experiment: str, *settings: str) -> list[str]:
    """Return the settings that the message about a setting advises, as a shell would pass them."""
    with pytest.raises(ConfigError) as caught:
        load_run(experiment, settings)
    ways = (caught.value.fix or "").split("; ")
    return [shlex.split(way.partition(": ")[2])[0] for way in ways if way]


NO_EFFECT = {("emoji/sae", "probe.targets"), ("emoji/direction", "trainer.learning_rate")}
"""Experiment and a key that its probe refuses whatever the value."""


def follow(experiment: str, way: str) -> None:
    needed = ["logger=wandb"] if way.startswith("logger.") else []
    try:
        plan(load_run(experiment, [*needed, way]))
    except ConfigError as error:
        raise AssertionError(f"advised {way}, refused: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    "setting",
    [
        "seed=0,1,2", "probe.params.k=1,2", "probe.params.l2=0.1,1", "trainer.max_epochs=1,2", "data.path=a,b",
        "features.timesteps=1,2", "probe.cell=mid_block@t25,mid_block@t200", "probe.targets=label,style", "seed=[1",
        "probe.name=topk,linear", "data.limit=1, 2", "control=none,raw_pixels", "features.seed=range(1,3)",
        "data.path=[1", "output={a", "features.taps=mid_block,up_blocks.0", "trainer.learning_rate=0.1,1",
        "probe.params.positive=a,b", "logger.tags=a,b",
    ],
)  # fmt: skip
def test_every_advised_setting_is_accepted(experiment: str, setting: str) -> None:
    for way in advice(experiment, setting):
        if (experiment, way.partition("=")[0]) not in NO_EFFECT:
            follow(experiment, way)


@pytest.mark.parametrize(
    ("experiment", "setting", "ways"),
    [
        ("emoji/sae", "seed=0,1,2", ["probe.grid.seed=[0,1,2]", "seed=0"]),
        ("emoji/classifier", "seed=0,1,2", ["probe.grid.seed=[0,1,2]", "seed=0"]),
        pytest.param("emoji/direction", "seed=0,1,2", ["seed=0"], marks=pytest.mark.slow),
        pytest.param(
            "emoji/sae", "probe.params.k=8,16", ["probe.grid.k=[8,16]", "probe.params.k=8"], marks=pytest.mark.slow
        ),
        pytest.param("emoji/sae", "features.timesteps=25,200", ["features.timesteps=[25,200]"], marks=pytest.mark.slow),
        pytest.param(
            "emoji/sae",
            "features.prompt=a cat, a dog",
            ["features.prompt='a cat, a dog'", "features.prompt=a cat"],
            marks=pytest.mark.slow,
        ),
        ("emoji/sae", "seed=[0,1", []),
        ("emoji/sae", "data.path=[x", ["data.path='[x'"]),
        pytest.param("emoji/sae", "probe.params.k=a,b", [], marks=pytest.mark.slow),
    ],
)
def test_the_way_that_fits_the_key_is_advised(experiment: str, setting: str, ways: list[str]) -> None:
    assert advice(experiment, setting) == ways
    for way in ways[:1] if "prompt" not in setting else ():  # a prompt needs its condition too
        follow(experiment, way)


@pytest.mark.slow
def test_another_unreadable_setting_does_not_hide_the_way() -> None:
    assert advice("emoji/sae", "seed=0,1", "trainer.max_epochs=1,2", "data.path=[") != []


def test_a_list_of_seeds_is_refused_as_a_list() -> None:
    with pytest.raises(ConfigError, match=r"'seed' is \[0, 1, 2\] .list., expected int"):
        load_run("emoji/sae", ["seed=[0,1,2]"])
