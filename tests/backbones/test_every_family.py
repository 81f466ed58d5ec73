"""The contract of every family, on its tiny checkpoint; the tests run over the registry."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.intervention import replaced
from diffprobe.backbones.taps import backbone_info
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownTap
from diffprobe.core.registry import FAMILIES
from tests.backbones.contract import CHECKS, NO_REFERENCE, RESOLUTION, Case, checks_of, denoise, make_case, open_whole
from tests.backbones.plans import plan_for

KEYS = ["a/0", "b.1", "c"]
SAMPLES = {
    "captions": ["red cat", "", "blue dog"],
    "labels": [2, 0, 1],
    "columns": {"class_name": ["cat", "tree", "dog"]},
}
CONDITIONING = {
    "prompt": {"condition": "prompt", "prompt": "1"},  # a text for some, a class for others
    "template": {"condition": "template", "prompt": "a photo of a {class_name}"},
    "negative": {"unconditional": True, "negative_prompt": "dark", "condition": "caption"},
}


@pytest.fixture(scope="module", params=FAMILIES.names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=(RESOLUTION, RESOLUTION), mode="bilinear")


def read(features: DiffusionFeatures, images: Tensor, order: Sequence[int] = (0, 1, 2)) -> dict[str, Tensor]:
    """Read the samples in `order`, with all their metadata."""
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


@pytest.mark.parametrize("check", list(CHECKS))
def test_the_contract_is_kept(check: str, case: Case) -> None:
    if check in checks_of(case.name):
        CHECKS[check](case)


@pytest.mark.slow
@torch.no_grad()
def test_each_block_can_be_replaced(case: Case) -> None:
    """By itself, which changes no bit, and by another image, which changes the prediction; texts beside it stay."""
    if case.name in NO_REFERENCE:
        return
    (backbone, spec), step = open_whole(case), case.reference.steps[0]
    untouched = denoise(backbone, case.reference, step).value

    def other(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    for tap in spec.blocks:
        with replaced(backbone.denoiser, tap, spec.layout, torch.clone):
            assert denoise(backbone, case.reference, step).value.equal(untouched), tap
        with replaced(backbone.denoiser, tap, spec.layout, other):
            assert not denoise(backbone, case.reference, step).value.allclose(untouched), tap


def test_the_spec_traces_and_lists_its_blocks_in_order(case: Case) -> None:
    spec = case.info.spec
    assert spec.family == case.name and spec.resolution == RESOLUTION
    assert [tap.path for tap in case.info.taps] == list(spec.blocks)
    shares = [tap.flop_share or 0.0 for tap in case.info.taps]
    assert shares == sorted(shares) and 0 < shares[-1] <= 1
    assert set(spec.aliases.values()) <= {
        tap.path for tap in backbone_info(case.path, resolution=RESOLUTION, inner=True).taps
    }
    assert not any(p.device.type != "meta" for p in spec.denoiser.parameters())


@pytest.mark.slow
def test_every_tap_has_the_listed_shape(case: Case, images: Tensor) -> None:
    taps = backbone_info(case.path, resolution=RESOLUTION, inner=True).taps
    settings = {**case.settings, "timesteps": case.settings["timesteps"][:1]}
    features = case.load(**{**settings, "taps": [tap.path for tap in taps]}, pool="none")
    found = dict(zip((cell.tap for cell in features.cells), read(features, images).values(), strict=True))
    assert list(found) == [tap.path for tap in taps]
    for tap in taps:
        assert found[tap.path].shape == (3, tap.channels, *tap.size), tap
        assert found[tap.path].isfinite().all(), tap
        if tap.path.endswith("/probs"):
            total = found[tap.path].sum(1)
            if case.info.spec.layout.is_joint_attention(tap.path.removesuffix("/probs")):
                assert bool(((total > 0) & (total < 1)).all()), tap  # the rest is the image's
            else:
                close({"x": total}, {"x": torch.ones(3, *tap.size)})
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
    close(read(case.load(max_rows_per_pass=2), images), read(case.load(), images))


@pytest.mark.slow
def test_draws_kept_are_those_that_are_averaged(case: Case, images: Tensor) -> None:
    kept = read(case.load(draws=2, keep_draws=True), images)
    assert all(value.shape[:2] == (3, 2) for value in kept.values())
    close(read(case.load(draws=2), images), kept, lambda x: x.mean(1))
    close({cell: value[:, 0] for cell, value in kept.items()}, read(case.load(), images))


def test_a_pruned_backbone_lacks_later_blocks_and_gives_the_same(case: Case, images: Tensor) -> None:
    whole = read(case.load(), images)
    counts = []
    for block in (case.blocks[0], case.blocks[len(case.blocks) // 2]):
        pruned = case.load(taps=[block])
        counts.append(n_parameters(pruned))
        close(read(pruned, images), whole)
    if case.has_weights():
        assert 0 < counts[0] < counts[1] <= n_parameters(case.load())
        assert n_parameters(case.load()) <= sum(p.numel() for p in case.info.spec.denoiser.parameters())


@pytest.mark.slow
def test_compiled_blocks_give_the_same(case: Case, images: Tensor) -> None:
    close(read(case.load(compile="eager", max_rows_per_pass=2), images), read(case.load(), images))


@pytest.mark.slow
def test_random_weights_differ_and_repeat(case: Case, images: Tensor) -> None:
    if not case.has_weights():
        with pytest.raises(ConfigError, match="random_weights"):
            case.load(random_weights=True)
        return
    trained, random = read(case.load(), images), read(case.load(random_weights=True), images)
    last = f"{case.blocks[-1]}@"
    cell = next(cell for cell in trained if cell.startswith(last))
    assert float((trained[cell] - random[cell]).abs().max()) > 1e-4
    other = read(case.load(random_weights=True, random_seed=1), images)
    assert float((other[cell] - random[cell]).abs().max()) > 1e-4
    pruned = case.load(random_weights=True, taps=case.blocks[:1])
    close(read(pruned, images), random)  # the weights drawn do not depend on the taps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precisions_run_and_come_near(dtype: str, case: Case, images: Tensor) -> None:
    found, exact = read(case.load(dtype=dtype), images), read(case.load(), images)
    for cell, value in found.items():
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert float((value - exact[cell]).norm() / exact[cell].norm().clamp_min(1e-3)) < 0.1, cell


@pytest.mark.slow
def test_every_supported_condition_runs(case: Case, images: Tensor) -> None:
    for condition in case.info.spec.conditions:
        conditioning = CONDITIONING.get(condition, {"condition": condition})
        found = read(case.load(taps=case.blocks[-1:], **conditioning), images)
        assert all(value.isfinite().all() for value in found.values())
        assert condition in {cell.split(":")[1] for cell in found}


def test_unsupported_conditions_are_refused(case: Case) -> None:
    for condition in {"empty", "caption", "label"} - set(case.info.spec.conditions):
        with pytest.raises(ConfigError, match=", ".join(case.info.spec.conditions)):
            plan_for(case.path, **{**case.settings, "condition": condition})


def test_an_unknown_tap_lists_the_blocks(case: Case) -> None:
    with pytest.raises(UnknownTap) as caught:
        plan_for(case.path, **{**case.settings, "taps": ["no_such_block"]})
    assert all(f"{block} (" in str(caught.value) for block in case.blocks)


@pytest.mark.parametrize("readout", ["probs", "logits", "text"])
def test_a_readout_where_there_is_none_is_refused(readout: str, case: Case) -> None:
    places = [tap.path for tap in backbone_info(case.path, resolution=RESOLUTION, inner=True).taps]
    if f"{case.blocks[0]}/{readout}" in places:
        return
    with pytest.raises(UnknownTap, match=f"{case.blocks[0]}/{readout}"):
        plan_for(case.path, **{**case.settings, "taps": [f"{case.blocks[0]}/{readout}"]})


@pytest.mark.parametrize("beyond", [-1, 0])
def test_a_timestep_off_the_grid_is_refused(beyond: int, case: Case) -> None:
    n = case.info.spec.schedule.n_timesteps
    with pytest.raises(BadTimestep, match="allowed: "):
        plan_for(case.path, **{**case.settings, "timesteps": [-1 if beyond else n]})


def test_the_checkpoint_is_found_by_its_own_index(case: Case) -> None:
    if case.path != "pixels":
        assert (Path(case.path) / "model_index.json").is_file()
    plan = plan_for(case.path, **case.settings)
    assert plan.spec.family == case.name
    assert plan.fingerprint == plan_for(case.path, **case.settings).fingerprint
