"""What every family must keep, held on its tiny checkpoint. A new family is tested by existing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.plan import make_plan
from diffprobe.backbones.taps import BackboneInfo, survey
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownTap
from diffprobe.core.registry import FAMILIES

KEYS = ["a/0", "b.1", "c"]
RESOLUTION = 32
SAMPLES = {
    "captions": ["red cat", "", "blue dog"],
    "labels": [2, 0, 1],
    "columns": {"class_name": ["cat", "tree", "dog"]},
}
TOLD = {
    "prompt": {"condition": "prompt", "prompt": "1"},  # a text to some, a class to others
    "template": {"condition": "template", "prompt": "a photo of a {class_name}"},
    "negative": {"unconditional": True, "negative_prompt": "dark", "condition": "caption"},
}


@dataclass
class Case:
    """One family's tiny checkpoint."""

    name: str
    path: str
    survey: BackboneInfo
    loaded: dict[str, DiffusionFeatures] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The whole blocks, in the order in which they run."""
        return self.survey.spec.blocks

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all families take: every block at two timesteps."""
        last = self.survey.spec.schedule.n_timesteps - 1
        condition = {"condition": self.survey.spec.conditions[0]}
        timesteps = sorted({last // 3, last // 2})
        return {"taps": self.blocks, "timesteps": timesteps, "resolution": RESOLUTION, **condition}

    def load(self, **changes: Any) -> DiffusionFeatures:
        """Load it on the CPU; the same settings once."""
        chosen = {**self.settings, "device": "cpu", **changes}
        key = repr(sorted(chosen.items()))
        if key not in self.loaded:
            self.loaded[key] = DiffusionFeatures.from_pretrained(self.path, **chosen)
        return self.loaded[key]

    def has_weights(self) -> bool:
        """Tell whether there is anything to train in the denoiser."""
        return any(True for _ in self.survey.spec.denoiser.parameters())


@pytest.fixture(scope="module", params=FAMILIES.names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = FAMILIES.load(request.param).tiny(tmp_path_factory.mktemp(request.param) / "tiny")
    path = "pixels" if request.param == "pixels" else str(made)  # that family is named, not found on disk
    return Case(request.param, path, survey(path, resolution=RESOLUTION))


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=(RESOLUTION, RESOLUTION), mode="bilinear")


def read(features: DiffusionFeatures, images: Tensor, order: Sequence[int] = (0, 1, 2)) -> dict[str, Tensor]:
    """Read the samples in `order`, with all that could be asked of them."""
    rows = {name: [values[i] for i in order] for name, values in SAMPLES.items() if name != "columns"}
    columns = {name: [values[i] for i in order] for name, values in SAMPLES["columns"].items()}  # type: ignore
    return features(images[list(order)], keys=[KEYS[i] for i in order], columns=columns, **rows)


def close(
    found: dict[str, Tensor], expected: dict[str, Tensor], pick: Callable[[Tensor], Tensor] = lambda x: x
) -> None:
    for cell, value in found.items():
        scale = max(1.0, float(expected[cell].abs().max()))
        torch.testing.assert_close(
            value, pick(expected[cell]), atol=1e-5 * scale, rtol=0, msg=lambda m, c=cell: f"{c}: {m}"
        )


def n_parameters(features: DiffusionFeatures) -> int:
    return sum(p.numel() for p in features._backbone.denoiser.parameters())


def test_the_outline_traces_and_lists_its_blocks_in_order(case: Case) -> None:
    spec = case.survey.spec
    assert spec.family == case.name and spec.resolution == RESOLUTION
    assert [tap.path for tap in case.survey.taps] == list(spec.blocks)
    shares = [tap.flop_share or 0.0 for tap in case.survey.taps]
    assert shares == sorted(shares) and 0 < shares[-1] <= 1
    assert set(spec.aliases.values()) <= {tap.path for tap in survey(case.path, resolution=RESOLUTION, inner=True).taps}
    assert not any(p.device.type != "meta" for p in spec.denoiser.parameters())


def test_every_place_gives_what_the_listing_says(case: Case, images: Tensor) -> None:
    taps = survey(case.path, resolution=RESOLUTION, inner=True).taps
    settings = {**case.settings, "timesteps": case.settings["timesteps"][:1]}
    features = case.load(**{**settings, "taps": [tap.path for tap in taps]}, pool="none")
    found = dict(zip((cell.tap for cell in features.cells), read(features, images).values(), strict=True))
    assert list(found) == [tap.path for tap in taps]
    for tap in taps:
        assert found[tap.path].shape == (3, tap.channels, *tap.size), tap
        assert found[tap.path].isfinite().all(), tap
        if tap.path.endswith("/probs"):
            close({"x": found[tap.path].sum(1)}, {"x": torch.ones(3, *tap.size)})
    whole = read(case.load(pool="none"), images)
    for cell, value in whole.items():  # reading within a block changes nothing behind it
        tap, _, rest = cell.partition("@")
        if rest.startswith(f"t{settings['timesteps'][0]}:"):
            close({cell: found[tap]}, {cell: value})


def test_batch_size_and_order_do_not_matter(case: Case, images: Tensor) -> None:
    whole = read(case.load(), images)
    close(read(case.load(), images, (2, 0, 1)), whole, lambda x: x[[2, 0, 1]])
    for i in range(3):
        close(read(case.load(), images, (i,)), whole, lambda x, i=i: x[[i]])


def test_rows_of_a_pass_do_not_matter(case: Case, images: Tensor) -> None:
    close(read(case.load(rows=2), images), read(case.load(), images))


def test_draws_kept_are_those_that_are_averaged(case: Case, images: Tensor) -> None:
    kept = read(case.load(draws=2, keep_draws=True), images)
    assert all(value.shape[:2] == (3, 2) for value in kept.values())
    close(read(case.load(draws=2), images), kept, lambda x: x.mean(1))
    close({cell: value[:, 0] for cell, value in kept.items()}, read(case.load(), images))


def test_a_cut_backbone_lacks_what_comes_later_and_gives_the_same(case: Case, images: Tensor) -> None:
    whole = read(case.load(), images)
    counts = []
    for block in (case.blocks[0], case.blocks[len(case.blocks) // 2]):
        prune_after = case.load(taps=[block])
        counts.append(n_parameters(prune_after))
        close(read(prune_after, images), whole)
    if case.has_weights():
        assert 0 < counts[0] < counts[1] <= n_parameters(case.load())
        assert n_parameters(case.load()) <= sum(p.numel() for p in case.survey.spec.denoiser.parameters())


@pytest.mark.slow
def test_compiled_blocks_give_the_same(case: Case, images: Tensor) -> None:
    close(read(case.load(compile="eager", rows=2), images), read(case.load(), images))


def test_random_weights_differ_and_repeat(case: Case, images: Tensor) -> None:
    if not case.has_weights():
        with pytest.raises(ConfigError, match="no weights"):
            case.load(random_weights=True)
        return
    trained, random = read(case.load(), images), read(case.load(random_weights=True), images)
    last = f"{case.blocks[-1]}@"
    cell = next(cell for cell in trained if cell.startswith(last))
    assert float((trained[cell] - random[cell]).abs().max()) > 1e-4
    other = read(case.load(random_weights=True, random_seed=1), images)
    assert float((other[cell] - random[cell]).abs().max()) > 1e-4
    prune_after = case.load(random_weights=True, taps=case.blocks[:1])
    close(read(prune_after, images), random)  # the weights drawn do not depend on the taps


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precisions_run_and_come_near(dtype: str, case: Case, images: Tensor) -> None:
    found, exact = read(case.load(dtype=dtype), images), read(case.load(), images)
    for cell, value in found.items():
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert float((value - exact[cell]).norm() / exact[cell].norm().clamp_min(1e-3)) < 0.1, cell


def test_whatever_it_can_be_told_is_told(case: Case, images: Tensor) -> None:
    for condition in case.survey.spec.conditions:
        conditioning = TOLD.get(condition, {"condition": condition})
        found = read(case.load(taps=case.blocks[-1:], **conditioning), images)
        assert all(value.isfinite().all() for value in found.values())
        assert condition in {cell.split(":")[1] for cell in found}


def test_what_it_cannot_be_told_is_refused(case: Case) -> None:
    for condition in {"empty", "caption", "label"} - set(case.survey.spec.conditions):
        with pytest.raises(ConfigError, match=", ".join(case.survey.spec.conditions)):
            make_plan(case.path, **{**case.settings, "condition": condition})


def test_an_unknown_tap_is_told_what_there_is(case: Case) -> None:
    with pytest.raises(UnknownTap) as caught:
        make_plan(case.path, **{**case.settings, "taps": ["no_such_block"]})
    assert all(f"{block} (" in str(caught.value) for block in case.blocks)


@pytest.mark.parametrize("readout", ["probs", "logits", "text"])
def test_a_readout_where_there_is_none_is_refused(readout: str, case: Case) -> None:
    places = [tap.path for tap in survey(case.path, resolution=RESOLUTION, inner=True).taps]
    if f"{case.blocks[0]}/{readout}" in places:
        return
    with pytest.raises(UnknownTap, match="no attention" if readout != "text" else "no text"):
        make_plan(case.path, **{**case.settings, "taps": [f"{case.blocks[0]}/{readout}"]})


@pytest.mark.parametrize("beyond", [-1, 0])
def test_a_timestep_off_the_grid_is_refused(beyond: int, case: Case) -> None:
    n = case.survey.spec.schedule.n_timesteps
    with pytest.raises(BadTimestep, match="allowed: "):
        make_plan(case.path, **{**case.settings, "timesteps": [-1 if beyond else n]})


def test_the_checkpoint_is_found_by_its_own_index(case: Case) -> None:
    if case.path != "pixels":
        assert (Path(case.path) / "model_index.json").is_file()
    plan = make_plan(case.path, **case.settings)
    assert plan.spec.family == case.name
    assert plan.fingerprint == make_plan(case.path, **case.settings).fingerprint
