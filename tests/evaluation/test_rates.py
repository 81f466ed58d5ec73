from dataclasses import replace

import numpy as np
import pytest

from diffprobe.analysis.rerendering import Rerendering
from diffprobe.core.errors import ConfigError, EmptyClass, UninformativeReader, UnknownName, WeightsMissing
from diffprobe.core.result import read_result
from diffprobe.evaluation import rates as module
from diffprobe.evaluation.certificates.audit import read_audit
from diffprobe.evaluation.rates import RatesEvaluation, evaluate_rates
from diffprobe.generative.scene_reader import SceneReader
from diffprobe.shards.scenes.spec import FACTORS, PLAIN, STRIPED
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


class StubReader:
    """Reads every factor of a rendered image right, but errs on textures at known rates."""

    def __init__(self, sensitivity, specificity):
        self.resolution, self.rates = 32, {STRIPED: sensitivity, PLAIN: specificity}
        self.truth, self.generator = {}, np.random.default_rng(0)

    def learn(self, found):
        for one in found:
            for row, image in enumerate(one.images):
                self.truth[image.tobytes()] = {name: int(one.truth.factors[name][row]) for name in FACTORS}
        return found

    def read(self, images):
        codes = [dict(self.truth[image.tobytes()]) for image in images]
        for code in codes:
            if self.generator.uniform() > self.rates[code["texture"]]:
                code["texture"] = 1 - code["texture"]
        return {name: np.eye(len(SPEC.names(name)))[[code[name] for code in codes]] for name in FACTORS}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluate with a stub reader; the labels of re-rendering are the truth."""

    def run(reader, **settings):
        SceneReader(SPEC, resolution=32).save(tmp_path / "reader")
        monkeypatch.setattr(module, "load_reader", lambda *_: reader)
        drawn = module.rendered_images
        monkeypatch.setattr(module, "rendered_images", lambda *a, **k: reader.learn(drawn(*a, **k)))

        def fit(spec, image, proposals):
            values = reader.truth[image.tobytes()]
            contrast = 0.4 if values["colour"] == 0 else float(values["texture"])
            return Rerendering(values=values, margins={}, distance=0.0, contrast=contrast)

        monkeypatch.setattr(module, "nearest_rerendering", fit)
        config = RatesEvaluation(
            experiment="mine/rates", reader=str(tmp_path / "reader"), output=str(tmp_path / "runs"), n_resamples=400
        )
        config = replace(config, **settings)
        path = evaluate_rates(config)
        monkeypatch.undo()
        return path, {(record.name, record.target): record for record in read_result(path).metrics}

    return run


@pytest.mark.slow
def test_rates_of_rendered_images_are_recovered_through_a_reader_that_errs(evaluate):
    path, found = evaluate(StubReader(0.85, 0.95), validated_per_role=60)
    own, other = found["spearman", "planted"], found["spearman", "permuted"]
    assert own.value > 0.95 and own.value <= own.detail["cap_by_ties"] + 1e-9
    assert own.value > own.controls["permuted_roles"] and own.detail["null"]["p"] < 0.01
    assert other.value < 0.5 and other.detail["own_world"] is False
    assert abs(found["bias", "planted"].value) < 0.04 and "permuted_roles" not in found["bias", "planted"].controls
    low, high = found["slope", "planted"].detail["interval"]
    assert low < 1 < high and found["slope", "planted"].value == pytest.approx(1, abs=0.15)
    assert found["max_error", "planted"].value < found["max_error", "planted"].controls["permuted_roles"]
    assert found["coverage", "planted"].value >= 20 / 24 > found["coverage", "permuted"].value
    read = np.array([found["rate", role.name].detail["read"] for role in SPEC.roles])
    planted = np.array([role.striped[0] for role in SPEC.roles])
    assert np.polyfit(planted, read, 1)[0] < 0.9  # without the correction the slope is that of the reader
    assert found["sensitivity", "texture"].value == pytest.approx(0.85, abs=0.05)
    audit = read_audit(path.parent / "audit.json", [role.name for role in SPEC.roles])
    assert audit.rate.tolist() == pytest.approx([found["rate", role.name].value for role in SPEC.roles])
    assert found["prompted_role", "role"].value == found["label_accuracy", "place"].value == 1
    assert found["half_committed", "texture"].value == pytest.approx(0.2, abs=0.05)  # one of five colours
    assert (path.parent / "rates" / "rates.png").stat().st_size > 1000
    assert (path.parent / "labels.csv").read_text().count("\n") == 1 + 24 * 60 * len(FACTORS)


@pytest.mark.slow
def test_labels_by_eye_replace_those_of_rerendering(evaluate, tmp_path):
    _, before = evaluate(StubReader(1.0, 1.0), n_per_role=20, validated_per_role=5)
    labels = tmp_path / "eye.csv"
    labels.write_text("key,factor,value,by\n" + "".join(f"judge-000{i},texture,striped,ab\n" for i in range(5)))
    _, after = evaluate(StubReader(1.0, 1.0), n_per_role=20, validated_per_role=5, labels=str(labels))
    assert before["sensitivity", "texture"].value == 1 > after["sensitivity", "texture"].value  # judges are plain
    assert after["sensitivity", "texture"].detail["labels_by_eye"] == 5
    assert after["sensitivity", "texture"].detail["differing"] >= 4
    assert after["rate", "sailor"].value >= before["rate", "sailor"].value


@pytest.mark.slow
def test_a_reader_that_guesses_is_refused(evaluate):
    with pytest.raises(UninformativeReader):
        evaluate(StubReader(0.3, 0.6), n_per_role=20, validated_per_role=20)


def test_wrong_settings_are_refused_before_anything_is_drawn(tmp_path):
    config = RatesEvaluation(experiment="mine/rates", reader=str(tmp_path), output=str(tmp_path))
    with pytest.raises(WeightsMissing):
        evaluate_rates(config)
    with pytest.raises(UnknownName, match="permuted"):
        evaluate_rates(replace(config, world="permutd"))
    for settings in ({"guidance": -1.0}, {"n_per_role": 0}, {"validated_per_role": 101}, {"sampling_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            replace(config, **settings)


@pytest.mark.slow
def test_images_of_a_pipeline_are_kept_when_their_textures_cannot_be_corrected(tiny_sd, tmp_path):
    """A random pipeline draws no scenes: the verb says so, and its images are there for the next call."""
    SceneReader(SPEC, resolution=32).save(tmp_path / "reader")
    config = RatesEvaluation(
        experiment="mine/rates", model=str(tiny_sd), reader=str(tmp_path / "reader"), output=str(tmp_path),
        n_per_role=1, validated_per_role=1, sampling_steps=2,
    )  # fmt: skip
    with pytest.raises((EmptyClass, UninformativeReader)):
        evaluate_rates(config)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images/*/*.safetensors")}
    assert len(files) == len(SPEC.roles)
    with pytest.raises((EmptyClass, UninformativeReader)):
        evaluate_rates(config)
    assert {path: path.stat().st_mtime_ns for path in files} == files
