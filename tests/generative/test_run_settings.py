import pytest

from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError
from diffprobe.generative.autoencoder import AutoencoderTraining
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.text_encoder import TextEncoderTraining

RUNS = (AutoencoderTraining, TextEncoderTraining, DenoiserTraining)


def make(cls, **keys):
    tree = {"experiment": "x", "data": {"path": "x"}, "trainer": {}, "logger": {}}
    own = {"autoencoder": "x"} if cls is DenoiserTraining else {}
    return parse(cls, {**tree, **own, **keys})


@pytest.mark.parametrize("cls", RUNS)
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"ema_decay": -0.1}, "ema_decay=-0.1"),
        ({"ema_decay": float("nan")}, "ema_decay.*nan"),
        ({"warmup_steps": -1}, "warmup_steps=-1.*at least 0"),
        ({"data": {"path": "x", "shuffle_buffer": 0}}, "data.shuffle_buffer=0"),
    ],
)
def test_settings_that_no_generative_run_accepts(cls, keys, message):
    with pytest.raises(ConfigError, match=message):
        make(cls, **keys)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (AutoencoderTraining, "kl_weight", -1e-6),
        (AutoencoderTraining, "edge_weight", -1.0),
        (TextEncoderTraining, "mixtures", -1),
        (DenoiserTraining, "drop_captions", 1.1),
        (DenoiserTraining, "drop_captions_clean", -0.1),
        (DenoiserTraining, "text_noise", -0.5),
        (DenoiserTraining, "text_learning_rate", -1.0),
    ],
)
def test_a_value_out_of_range_is_named(cls, key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        make(cls, **{key: value})


def test_the_ends_of_the_ranges_are_allowed():
    for cls in RUNS:
        make(cls, ema_decay=0.0, warmup_steps=0)
    make(AutoencoderTraining, mse_weight=0.0, l1_weight=0.0, edge_weight=0.0, kl_weight=0.0)
    make(TextEncoderTraining, mixtures=0)
    make(DenoiserTraining, drop_captions=0.0, drop_captions_clean=1.0, text_noise=0.0)
