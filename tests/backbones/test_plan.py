import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.plan import make_plan
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import BadTimestep, ConfigError, WeightsMissing
from tests.backbones.plans import plan_for

BASE = {"taps": ["mid_block"], "timesteps": [0, 100]}


def fingerprint(path: Path, **changes: object) -> str:
    return digest_json(plan_for(str(path), **{**BASE, **changes}).fingerprint)  # type: ignore[arg-type]


def test_cells_and_widths_are_known_before_loading(tiny_sd: Path) -> None:
    plan = plan_for(str(tiny_sd), taps=["up_ft2", "mid_block"], timesteps=[100, 0])
    assert plan.widths == {
        "mid_block@t0:empty:mean": 32,
        "mid_block@t100:empty:mean": 32,
        "up_blocks.2@t0:empty:mean": 16,
        "up_blocks.2@t100:empty:mean": 16,
    }
    assert [cell.name for cell in plan.cells] == list(plan.widths)
    assert plan.resolution == 32


def test_the_fingerprint_is_stable_over_place_order_and_spelling(tiny_sd: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_sd, tmp_path / "copy")
    assert fingerprint(copy, taps=["bottleneck"], timesteps=[100, 0]) == fingerprint(tiny_sd)
    assert fingerprint(tiny_sd, resolution=32, random_seed=5) == fingerprint(tiny_sd)  # its own size; seed of nothing


@pytest.mark.slow
def test_every_setting_that_fixes_content_changes_the_fingerprint(tiny_sd: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"taps": ["mid_block", "up_ft0"]},
        {"timesteps": [0]},
        {"condition": "caption"},
        {"condition": "prompt", "prompt": "cat"},
        {"condition": "prompt", "prompt": "dog"},
        {"pool": "max"},
        {"draws": 2},
        {"seed": 1},
        {"resolution": 64},
        {"dtype": "bfloat16"},
        {"random_weights": True},
        {"random_weights": True, "random_seed": 1},
    ]
    assert len({fingerprint(tiny_sd, **change) for change in changes}) == len(changes)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_every_part_changes_the_fingerprint(part: str, tiny_sd: Path, tmp_path: Path) -> None:
    other = sd_unet.tiny(tmp_path / "other", seed=1)
    mixed = shutil.copytree(tiny_sd, tmp_path / "mixed")
    if part == "tokenizer":
        (mixed / part / "vocab.json").write_text("{}")
    elif part == "scheduler":
        path = mixed / part / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.02}))
    else:
        shutil.copytree(other / part, mixed / part, dirs_exist_ok=True)
    assert fingerprint(mixed) != fingerprint(tiny_sd)


def test_random_weights_do_not_depend_on_the_trained_ones(tiny_sd: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(tiny_sd, tmp_path / "mixed")
    shutil.copytree(sd_unet.tiny(tmp_path / "other", seed=1) / "unet", mixed / "unet", dirs_exist_ok=True)
    assert fingerprint(mixed, random_weights=True) == fingerprint(tiny_sd, random_weights=True)


def test_the_sampler_does_not_count_but_its_betas_do(tiny_sd: Path, tmp_path: Path) -> None:
    euler = sd_unet.tiny(tmp_path / "euler", scheduler="EulerDiscreteScheduler")
    assert fingerprint(euler) == fingerprint(tiny_sd)


def test_the_fingerprint_of_weights_that_are_not_there_is_an_error(tiny_sd: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_sd, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(WeightsMissing, match="unet, vae, text_encoder"):
        fingerprint(copy)


def test_configs_give_the_same_plan(tiny_sd: Path) -> None:
    backbone = BackboneConfig(path=str(tiny_sd), dtype="bfloat16", random_weights=True, random_seed=3)
    features = FeaturesConfig(
        taps=("up_ft0",), timesteps=(7,), condition="prompt", prompt="cat", pool="max", draws=2, seed=4, resolution=64
    )
    expected = plan_for(
        str(tiny_sd),
        taps=["up_blocks.0"],
        timesteps=[7],
        condition="prompt",
        prompt="cat",
        pool="max",
        draws=2,
        seed=4,
        resolution=64,
        dtype="bfloat16",
        random_weights=True,
        random_seed=3,
    )
    assert make_plan(backbone, features).fingerprint == expected.fingerprint


def test_from_pretrained_takes_the_options_of_both_configs() -> None:
    """An option is listed twice: in the schema, and in the public signature."""
    of_runs = {
        "path",
        "source",
        "store",
        "latent_cache",
        "columns",
        "placement",
        "shuffle",
        "verify",
        "views",
        "massive",
    }  # the checkpoint, feature stores, columns, views of images, which calls give themselves, and what is found
    # on images of a data set
    configs = {field.name: field.default for cls in (BackboneConfig, FeaturesConfig) for field in fields(cls)}
    signature = inspect.signature(DiffusionFeatures.from_pretrained).parameters
    assert set(signature) - {"id_or_path"} == set(configs) - of_runs
    for name, parameter in signature.items():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == configs[name], name


def test_any_sequence_is_taken_for_a_list(tiny_sd: Path) -> None:
    assert plan_for(tiny_sd, taps=("mid_block",), timesteps=range(0, 300, 100)).timesteps == (0, 100, 200)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"timesteps": [1000]}, BadTimestep, "t=1000"),
        ({"timesteps": [-1]}, BadTimestep, r"0\.\.999"),
        ({"timesteps": []}, ConfigError, "timesteps"),
        ({"taps": "mid_block"}, ConfigError, "'taps' is 'mid_block'"),
        ({"condition": "label"}, ConfigError, "empty, caption, prompt"),
        ({"condition": "prompt"}, ConfigError, "condition=prompt"),
        ({"prompt": "cat"}, ConfigError, "condition=template"),
        ({"pool": "sum"}, ConfigError, "mean, max, none"),
        ({"draws": 0}, ConfigError, "draws=0"),
        ({"draws": "2"}, ConfigError, "'draws' is '2'"),
        ({"draw": 2}, ConfigError, "'draw'(.|\\n)*nearest: draws"),
        ({"dtype": "float8"}, ConfigError, "float32, bfloat16, float16"),
        ({"resolution": 33}, ConfigError, r"33 .* 2\b"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(
    changes: dict[str, object], error: type[Exception], message: str, tiny_sd: Path
) -> None:
    with pytest.raises(error, match=message):
        plan_for(str(tiny_sd), **{**BASE, **changes})  # type: ignore[arg-type]
