"""The steering of an audit through the whole path, with a tiny checkpoint: prompts, latents, images, page."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffprobe.analysis.audit.prompts import all_prompts
from diffprobe.analysis.audit.spec import Axis
from diffprobe.backbones.families import sd_unet
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.result import read_result
from diffprobe.evaluation.audit import DOSE_FILE, GRID_FILE, audit
from diffprobe.evaluation.audit_cost import cost_of
from diffprobe.evaluation.audit_inputs import read_latents, write_arrays
from diffprobe.evaluation.audit_steering_settings import AuditSteering
from diffprobe.features.extract_prompts import extract_prompts
from tests.evaluation.audit_world import settings

AXES = (Axis(name="group", positive=("round",), negative=("square",)),
        Axis(name="line", positive=("noto",), negative=("twemoji",)))  # fmt: skip


def extracted(config, tiny_sd, folder, **changes):
    """Extract the latents of an audit by a tiny checkpoint, one step per sample."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"{text}\n" for text in all_prompts(config)))
    overrides = [f"backbone.path={tiny_sd}", "backbone.device=cpu", f"prompts={folder / 'prompts.txt'}",
                 "sampling.steps=1", "sampling.guidance=0", "sampling.seeds=2", f"features.store={folder / 'stores'}",
                 *(f"{key}={value}" for key, value in changes.items())]  # fmt: skip
    request = load("audits/occupations_prompts", overrides, kinds=("extract_prompts",))
    return extract_prompts(request, progress=False)


@pytest.fixture(scope="module")
def config(tiny_sd, tiny_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    block = AuditSteering(
        generator=str(tiny_sd), labelled=str(tiny_shards), attributes={"group": "group", "line": "style"},
        strengths=(-2.0, 0.0, 2.0), n_subjects=4, seeds=2, n_random=1, sampling_steps=2, shown=3, neighbours=2,
    )  # fmt: skip
    found = settings(n_templates=4, axes=AXES, cells=("mid_block@t400",), descriptors=(), steering=block)
    store = extracted(found, tiny_sd, folder, **{"features.reread": "[400]", "features.taps": "[mid_block]"})
    return replace(found, store=str(store), output=str(folder / "runs"))


@pytest.fixture(scope="module")
def written(config):
    return audit(config)


@pytest.mark.slow
def test_result_table_images_and_page_are_written(config, written):
    folder = written.result.parent
    assert written.steering == folder / DOSE_FILE
    records = read_result(written.result).metrics
    rates = [one for one in records if one.name == "steering_rate"]
    assert len(rates) == 2 * 2 * 3 and all(0 <= one.value <= 1 and one.n == 8 for one in rates)
    untouched = {one.detail["read"] for one in rates if one.detail["strength"] == 0 and one.target == "group"}
    assert len(untouched) == 1  # strength 0 is the model itself, whatever the direction
    moved = [one.value for one in records if one.name == "steering_moved" and one.detail["along"] == one.target
             and one.detail["steered"] == one.target == "group"]  # fmt: skip
    assert moved[1] == 0 and moved[0] != moved[2]
    with (folder / DOSE_FILE).open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 3 * 4
    for number in (1, 2):
        with Image.open(folder / GRID_FILE.format(number)) as grid:
            assert grid.width == 3 * (32 + 2) + 2
    page = written.page.read_text()
    assert page.count("data:image/png") == 2 and "Causal link" in page
    assert set(read_result(written.result).artifacts) >= {"input/backbone", "input/labelled"}


@pytest.mark.slow
def test_it_is_repeatable_and_whitening_changes_associations_but_no_image(config, written):
    again = replace(config, output=config.output + "-again")
    assert read_result(audit(again).result).metrics == read_result(written.result).metrics
    white = read_result(audit(replace(again, whiten=True)).result).metrics
    own = read_result(written.result).metrics
    for name in ("steering_rate", "steering_moved", "steering_distance"):
        assert [one.value for one in white if one.name == name] == [one.value for one in own if one.name == name]
    assert [one.value for one in white if one.name == "association"] != [
        one.value for one in own if one.name == "association"
    ]


@pytest.mark.slow
def test_the_model_has_to_be_that_of_the_latents(config, tmp_path):
    other = sd_unet.tiny(tmp_path / "other", seed=1)
    with pytest.raises(StoreMismatch, match="another model"):
        audit(replace(config, steering=replace(config.steering, generator=str(other))))


@pytest.mark.slow
def test_latents_of_another_tap_or_of_no_tap_are_refused(config, tmp_path):
    latents = read_latents(config.store, "mid_block@t400")
    prompts = list(latents.prompts)
    write_arrays(tmp_path / "a", prompts, {"up_blocks.2@t400": latents.features, "words": latents.features})
    with pytest.raises(ConfigError, match="in generator .* have 16"):
        audit(replace(config, store=str(tmp_path / "a"), cells=("up_blocks.2@t400",)))
    with pytest.raises(ConfigError, match="'words' is not a tap"):
        audit(replace(config, store=str(tmp_path / "a"), cells=("words",)))


@pytest.mark.slow
def test_the_audit_of_occupations_runs_on_a_tiny_checkpoint(tiny_sd, tmp_path):
    """All templates and axes, every 77th occupation, one step per sample."""
    whole = load("audits/occupations", [], kinds=("audit",))
    config = replace(
        whole, subjects=whole.subjects[::77], neutral=whole.neutral[:1], descriptors=(), n_resamples=20,
        cells=("up_blocks.1@t400", "mid_block@t400"), n_permutations=99, output=str(tmp_path),
    )  # fmt: skip
    assert len({one.name for one in whole.all_subjects}) == len(whole.subjects) == 153 and len(config.subjects) == 2
    # the tiny tokenizer has letters rather than words, so that its 24 tokens are few
    store = extracted(config, tiny_sd, tmp_path / "latents", truncated="allow", **{"features.reread": "[400]"})
    written = audit(replace(config, store=str(store)))
    result = read_result(written.result)
    assert result.metrics[0].detail["axes"].keys() == {"gender", "skin tone", "age"}
    assert result.metrics[0].detail["n_templates"] == 22 and not any(
        "Nothing can be significant" in note for note in result.metrics[0].detail["notes"]
    )
    associations = [one for one in result.metrics if one.name == "association"]
    assert len(associations) == 6 and all(np.isfinite(one.value) for one in associations)
    assert "skin tone" in written.page.read_text() and cost_of(whole).n_prompts == len(all_prompts(whole))


@pytest.mark.slow
def test_the_settings_of_the_steering_are_recorded(config, written):
    recorded = json.loads(written.result.read_text())["config"]
    assert recorded["steering"]["strengths"] == [-2, 0, 2] and "extraction" not in recorded
