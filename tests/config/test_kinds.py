import dataclasses

import pytest

from diffprobe.cli.main import verbs
from diffprobe.config.kinds import KINDS, PROBE, kinds_of


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_has_a_dataclass_and_a_verb(name: str) -> None:
    kind = KINDS[name]
    assert dataclasses.is_dataclass(kind.load())
    assert kind.verb.split()[0] in verbs() and name in kinds_of(kind.verb)


def test_train_runs_probes_and_the_parts_of_a_diffusion_model() -> None:
    parts = {"train_autoencoder", "train_cleandift", "train_denoiser", "train_text_encoder"}
    assert set(kinds_of("train")) == {
        PROBE,
        "train_reader",
        "train_visual_tower",
        "train_difffeed",
        "train_self_guided",
        "train_vpd",
        *parts,
    }
