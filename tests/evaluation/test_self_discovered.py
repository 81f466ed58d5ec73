"""The self-discovered direction of a store of prompts of a tiny model, saved as any other direction."""

import pytest

from diffprobe.cli.main import main
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError, StoreMismatch, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.self_discovered import SelfDiscoveredConfig, make_self_discovered
from diffprobe.features.extract_prompts import extract_prompts
from diffprobe.probes.direction.base import Direction

PROMPTS = "prompt,colour,context\n" + "".join(
    f"a {colour} {thing},{colour},{thing}\n" for thing in ("cat", "dog", "tree", "cup") for colour in ("red", "blue")
)
CELL = "up_blocks.1@t500:empty:mean"


@pytest.fixture(scope="module")
def store(tiny_sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("self-discovered")
    (folder / "prompts.csv").write_text(PROMPTS, encoding="utf-8")
    config = PromptExtraction(
        backbone=BackboneConfig(path=str(tiny_sd), device="cpu"), prompts=str(folder / "prompts.csv"),
        truncated="allow",
        features=PromptFeaturesConfig(
            taps=("mid_block",), reread=(200,), keep=("latents",), store=str(folder / "stores")
        ),
        sampling=SamplingConfig(steps=3, seeds=2),
    )  # fmt: skip
    return extract_prompts(config)


def config(model, **changed):
    given = {"model": str(model), "target": "colour", "positive": "red", "negative": "blue", "cell": CELL, "steps": 3,
             "device": "cpu", **changed}  # fmt: skip
    return SelfDiscoveredConfig(**given)


@pytest.mark.slow
def test_it_is_saved_as_any_direction_with_its_error_on_held_out_contexts(store, tiny_sd, tmp_path):
    path = make_self_discovered(store, config(tiny_sd), output=tmp_path)
    result = read_result(path)
    norm, error = result.metrics
    assert (norm.n, error.n) == (6, 2) and error.controls["without_vector"] > 0
    saved = Direction.load(next((path.parent / "probes").rglob("probe.json")).parent)
    assert saved.cell == CELL and saved.scale == norm.value and saved.estimator == "self_discovered"
    assert float(saved.vector.norm()) == pytest.approx(1)
    assert read_result(make_self_discovered(store, config(tiny_sd), output=tmp_path)).metrics == result.metrics


@pytest.mark.slow
def test_the_command_prints_the_error_beside_that_without_the_vector(store, tiny_sd, tmp_path, capsys):
    keys = [
        f"model={tiny_sd}",
        "target=colour",
        "positive=red",
        "negative=blue",
        f"cell={CELL}",
        "steps=2",
        "device=cpu",
    ]
    assert main(["directions", str(store), "--self-discovered", *keys, "--output", str(tmp_path)]) == 0
    assert "without the vector" in capsys.readouterr().out


def test_what_cannot_be_found_is_refused(store, tiny_sd, tmp_path):
    with pytest.raises(UnknownName, match="green"):
        make_self_discovered(store, config(tiny_sd, positive="green"), output=tmp_path)
    with pytest.raises(StoreMismatch, match="another model"):
        make_self_discovered(store, config("emoji-sd"), output=tmp_path)
    with pytest.raises(ConfigError, match="held_out"):
        make_self_discovered(store, config(tiny_sd, held_out=0.95), output=tmp_path)
    with pytest.raises(ConfigError, match="model"):
        SelfDiscoveredConfig(target="colour", positive="red", negative="blue", cell=CELL)
    from tests.evaluation.prompt_stores import write_prompt_store

    with pytest.raises(ConfigError, match="keep"):
        make_self_discovered(write_prompt_store(tmp_path), config(tiny_sd), output=tmp_path)
