import dataclasses
from typing import Any

import pytest

from diffprobe.config import schema
from diffprobe.config.describe import field_docs
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, TrainerConfig
from diffprobe.core.errors import ConfigError

CLASSES = [cls for cls in vars(schema).values() if dataclasses.is_dataclass(cls)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_key_is_explained_and_nothing_can_be_changed(cls: Any) -> None:
    assert not [name for name, text in field_docs(cls).items() if not text]
    assert cls.__dataclass_params__.frozen and all(f.kw_only for f in dataclasses.fields(cls))


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (BackboneConfig, {"device": "gpu"}, "device=gpu"),
        (DataConfig, {"batch_size": 0}, "batch_size=0 is out of range: at least 1"),
        (DataConfig, {"limit": 0}, "limit=0"),
        (DataConfig, {"num_workers": -1}, "num_workers=-1"),
        (DataConfig, {"storage_patience": -1.0}, "storage_patience=-1.0 is out of range"),
        (DataConfig, {"storage_patience": float("nan")}, "storage_patience=nan"),
        (FeaturesConfig, {"taps": ()}, "taps is empty"),
        (FeaturesConfig, {"timesteps": (1, 1)}, "timesteps .*: 1, 1"),
        (FeaturesConfig, {"draws": 0}, "draws=0"),
        (FeaturesConfig, {"source": "live", "placement": "memory"}, "placement=memory .*source=stored"),
        (
            FeaturesConfig,
            {"source": "live", "shuffle": "rows"},
            "shuffle=rows .*source=stored.*params.row_buffer",
        ),
        (FeaturesConfig, {"prompt": "a cat"}, "prompt belongs to condition=prompt"),
        (FeaturesConfig, {"condition": "prompt"}, "prompt belongs to condition=prompt"),
        (TrainerConfig, {"max_steps": -2}, "max_steps=-2"),
        (TrainerConfig, {"learning_rate": 0.0}, "learning_rate=0.0 is out of range: more than 0"),
        (TrainerConfig, {"learning_rate": float("nan")}, "learning_rate=nan"),
        (TrainerConfig, {"weight_decay": -0.1}, "weight_decay=-0.1"),
        (TrainerConfig, {"devices": 0}, "devices=0"),
        (TrainerConfig, {"strategy": "ddp_spawn"}, "(?s)strategy=ddp_spawn.*fix: trainer.strategy=ddp"),
        (TrainerConfig, {"strategy": "ddp_notebook_find_unused_parameters_true"}, "strategy=ddp_notebook"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_values_out_of_range_are_refused(cls: Any, changes: dict[str, Any], message: str) -> None:
    required: dict[type, dict[str, object]] = {cls: {"path": "x"} for cls in (BackboneConfig, DataConfig)}
    required |= {FeaturesConfig: {"taps": ("mid_block",), "timesteps": (1,)}}
    cls(**required.get(cls, {}))
    with pytest.raises(ConfigError, match=message):
        cls(**{**required.get(cls, {}), **changes})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True}, "compile=true, which brings its own kernels"),
        ({"dtype": "bfloat16"}, "with dtype=bfloat16"),
        ({"part": "vae"}, "cpu_kernels with part=vae"),
    ],
)
def test_kernels_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(path="toy", cpu_kernels="auto", **settings)
