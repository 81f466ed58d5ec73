"""Rates of generated images with latents ablated, on the planted model."""

import dataclasses

import numpy as np
import pytest
import torch

from diffprobe.analysis import latent_classifier
from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, SchemaError, TooFewGroups, WeightsMismatch
from diffprobe.evaluation import latent_use_rates
from diffprobe.evaluation.latent_use_inputs import open_latents
from diffprobe.evaluation.latent_use_rates import GENERATED, generated_rates, rate_record
from diffprobe.evaluation.latent_use_reading import Reading
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.scoring.intervention_network import InterventionNetwork
from tests.evaluation.planted_use import SILENT, UNUSED, USED

READING = Reading(
    auroc=(0.9, 0.8, None), auroc_q=(0.01, 0.01, None), best_values=("shade=dark", "class=light", ""), n=24, notes=()
)  # fmt: skip


@pytest.fixture(scope="module")
def config(planted_use, tmp_path_factory):
    return LatentUseEvaluation(
        experiment="x", run=str(planted_use), generate=(USED, UNUSED), n_prompts=6, sampling_steps=3, guidance=1.0,
        n_resamples=50, device="cpu", output=str(tmp_path_factory.mktemp("rates")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened(config):
    return open_latents(config)


@pytest.fixture(scope="module", autouse=True)
def _small_latents():
    """Classify coarser latents: a fit of 1,024 dimensions takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_classifier, "_SIDE", 4)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def rates(config, opened, folder):
    return generated_rates(config, opened, READING, folder)


def images_of(folder) -> dict[str, dict[str, torch.Tensor]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    found = {}
    for path in (folder / GENERATED).iterdir():
        with safe_open(path, framework="pt") as stored:
            found[stored.metadata()["latent"]] = load_file(path)
    return found


@pytest.mark.slow
def test_the_unused_latent_changes_no_image_and_the_used_one_does(rates, folder) -> None:
    images = images_of(folder)
    untouched = images["None"]["untouched"]
    assert torch.equal(images[str(UNUSED)]["ablated"], untouched)
    assert (images[str(USED)]["ablated"] - untouched).abs().max() > 1e-3
    assert not torch.equal(images[str(UNUSED)]["random_direction"], untouched)
    assert rates[UNUSED].value == 0 and rates[UNUSED].detail["changed_images"] == 0


@pytest.mark.slow
def test_records_name_the_value_that_the_latent_reads(rates) -> None:
    assert list(rates) == [USED, UNUSED]
    record = rates[USED]
    assert (record.name, record.target, record.n, record.split) == ("rate_change", "shade=dark", 6, "test")
    assert rates[UNUSED].target == "class=light" and set(record.controls) == {"untouched", "random_direction"}
    assert record.detail["latent"] == USED and len(record.detail["steps"]) == 3
    assert "fitted to 24 training samples" in record.detail["reader"] and record.detail["reader_accuracy"] == 1.0


@pytest.mark.slow
def test_finished_latents_are_not_sampled_again(config, opened, rates, folder, monkeypatch) -> None:
    passes = []
    monkeypatch.setattr(InterventionNetwork, "predict", lambda *args, **keys: passes.append(args))
    again = generated_rates(config, opened, READING, folder)
    assert not passes and again == rates
    best = dataclasses.replace(config, generate=(), n_generate=1)
    assert list(generated_rates(best, opened, READING, folder)) == [USED] and not passes


@pytest.mark.slow
def test_a_window_ablates_at_its_steps_alone(config, opened, tmp_path, monkeypatch) -> None:
    changed = []
    predict = InterventionNetwork.predict

    def note(self, x, t, inputs, changes=None):
        changed.append((t, bool(changes)))
        return predict(self, x, t, inputs, changes)

    monkeypatch.setattr(InterventionNetwork, "predict", note)
    short = dataclasses.replace(config, generate=(USED,), window=(400, 700))
    record = generated_rates(short, opened, READING, tmp_path)[USED]
    assert record.detail["steps"] == [666] and {t for t, edited in changed if edited} == {666}
    assert sum(edited for _, edited in changed) == 2 * 2  # both passes of guidance; the latent and its control


@pytest.mark.slow
def test_passes_do_not_change_images(config, opened, rates, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(opened.network, "rows", 4)
    generated_rates(config, opened, READING, tmp_path)
    whole, parts = images_of(folder), images_of(tmp_path)
    for latent, found in whole.items():
        for name, images in found.items():
            torch.testing.assert_close(parts[latent][name], images, atol=1e-4, rtol=1e-3)


def test_the_rate_and_its_interval_are_paired() -> None:
    config = LatentUseEvaluation(experiment="x", n_resamples=200)
    rng = np.random.default_rng(0)
    untouched, ablated, control = (rng.random((3, 40)) < [[0.8], [0.3], [0.7]]).astype(float)
    true = np.arange(40) % 2 == 0
    about = {"cell": "c", "split": "test", "target": "style=oil", "probe": "topk", "latent": 3}
    record = rate_record(
        untouched, {"ablated": ablated, "random_latent": control}, real=true.astype(float), true=true,
        groups=[i // 2 for i in range(40)], config=config, about=about,
    )  # fmt: skip
    assert record.value == pytest.approx(ablated.mean() - untouched.mean())
    assert record.controls == {
        "untouched": untouched.mean(), "random_latent": pytest.approx(control.mean() - untouched.mean())
    }  # fmt: skip
    groups = [str(i // 2) for i in range(40)]
    plain = bootstrap_interval(mean_of(ablated - control), groups, n_resamples=200)
    assert record.detail["above"]["random_latent"] == [plain.low, plain.high] and "not_valid" not in record.detail
    blind = rate_record(
        untouched, {"ablated": ablated}, real=1 - true.astype(float), true=true, groups=range(40), config=config,
        about=about,
    )  # fmt: skip
    assert "right on 0.000 of the real images, a constant answer on 0.500" in blind.detail["not_valid"]


def test_what_cannot_be_generated_is_refused(config, opened, tmp_path) -> None:
    def rates_of(reading=READING, **keys):
        return generated_rates(dataclasses.replace(config, **keys), opened, reading, tmp_path)

    with pytest.raises(ConfigError, match=f"latent {SILENT} has no best value"):
        rates_of(generate=(SILENT,))
    with pytest.raises(ConfigError, match=r"no sampling step is within window=\[1,2\](.|\n)*999"):
        rates_of(window=(1, 2))
    with pytest.raises(TooFewGroups, match="1 group"):
        rates_of(n_prompts=1)
    with pytest.raises(WeightsMismatch, match="32 pixels"):
        rates_of(reader="scenes-reader")
    empty = dataclasses.replace(READING, auroc=(None,) * 3)
    with pytest.raises(ConfigError, match="no latent has a best value"):
        rates_of(empty, generate=(), n_generate=2)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_scene_reader_reads_factors_alone(config, opened, monkeypatch) -> None:
    with_reader = dataclasses.replace(config, reader="scenes-reader", generate=(), n_generate=1)
    assert latent_use_rates._readable(with_reader, opened) == {"class"}  # the role; `shade` is not a factor
    assert latent_use_rates._readable(config, opened) == {"class", "shade", "family"}


@pytest.mark.slow
def test_files_of_other_images_are_refused(config, opened, rates, tmp_path) -> None:
    generated_rates(config, opened, READING, tmp_path)
    paths = sorted((tmp_path / GENERATED).iterdir())
    content = [path.read_bytes() for path in paths]
    for path, other in zip(paths, content[1:] + content[:1], strict=True):
        path.write_bytes(other)
    with pytest.raises(SchemaError, match=r"does not hold the images of latent None(.|\n)*repeat the command"):
        generated_rates(config, opened, READING, tmp_path)
