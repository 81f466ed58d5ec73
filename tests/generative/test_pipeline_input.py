"""The pipeline folder that a training starts from."""

from pathlib import Path

import pytest

from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.generative.pipeline_input import pipeline_checkpoint, pipeline_digest


def test_a_shipped_model_is_located_and_its_digest_is_that_of_its_weights() -> None:
    one, other = (pipeline_checkpoint(name, key="model") for name in ("scenes-sd", "emoji-sd"))
    assert pipeline_digest(one) == pipeline_digest(pipeline_checkpoint("scenes-sd", key="model"))
    assert pipeline_digest(one) != pipeline_digest(other)


def test_what_is_not_there_or_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        pipeline_checkpoint(str(tmp_path / "none"), key="teacher")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises((WeightsMissing, WeightsMismatch), match=r"model\.ckpt"):
        pipeline_checkpoint(str(tmp_path / "model.ckpt"), key="teacher")
