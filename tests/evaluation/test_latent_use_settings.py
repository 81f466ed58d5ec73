import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation


def settings(**keys) -> LatentUseEvaluation:
    return LatentUseEvaluation(experiment="x", **keys)


def test_defaults_ablate_all_latents_and_generate_nothing() -> None:
    found = settings()
    assert found.latents == () and found.n_latents is None and not found.generates
    assert settings(n_generate=2).generates and settings(generate=(3,)).generates


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"limit": 1}, "limit=1"),
        ({"n_latents": 0}, "n_latents=0"),
        ({"guidance": -1.0, "n_generate": 1}, "guidance=-1"),
        ({"latents": (3, 3)}, "latents has duplicates: 3, 3"),
        ({"controls": ()}, r"controls is empty(.|\n)*random_direction, random_latent"),
        ({"latents": (3,), "n_latents": 2}, "latents and n_latents are both set"),
        ({"window": (500, 100), "n_generate": 1}, r"window=\[500, 100\]"),
        ({"device": "gpu"}, "device=gpu"),
    ],
)
def test_values_that_do_not_fit_are_refused(keys, match) -> None:
    with pytest.raises(ConfigError, match=match):
        settings(**keys)


@pytest.mark.parametrize(
    ("name", "value"),
    [("reader", "scenes-reader"), ("n_prompts", 8), ("window", (0, 500)), ("guidance", 2.0), ("sampling_steps", 4)],
)
def test_settings_of_generation_without_generation_are_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has no effect(.|\n)*n_generate=N"):
        settings(**{name: value})
    assert getattr(settings(n_generate=1, **{name: value}), name) == value
