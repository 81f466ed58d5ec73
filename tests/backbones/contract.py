"""The contract of a backbone family, as checks on its tiny checkpoint.

The reference is diffusers: the family's own pipeline is run for two steps with hooks on its denoiser and its scheduler.
That of research checkpoints, which have no pipeline, is in `references.py`.
`test_every_family.py` runs the checks over the registry; `test_mutations.py` shows that they fail for faulty families.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from diffprobe.backbones import prompt_features
from diffprobe.backbones.base import Backbone, BackboneSpec, Condition, LoadOptions, Prediction
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import family_of
from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.backbones.pool import no_pool
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.backbones.samplers import start_key
from diffprobe.backbones.taps import BackboneInfo, backbone_info
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import DiffprobeError
from diffprobe.core.registry import FAMILIES
from tests.backbones.plans import plan_for
from tests.backbones.references import OWN, Reference, Step

RESOLUTION = 32
PROMPTS = ["Red cat", "a photo of the moon"]
OWN_PROMPTS = {
    "kandinsky5": ["red  cat &amp; dog", "dog &amp; red cat"],
    "wan": ["Red  cat &amp; dog", "a photo of the moon"],
}
"""Prompts of families that clean texts; of one length in tokens where a pipeline pads them to the longest."""
CLASSES = [3, 0]
NO_REFERENCE = {"pixels": "the raw pixels have neither a pipeline nor a network"}
UNGUIDED = {
    "dit": "its pipeline's null class is 1000, which the tiny transformer does not have",
    "lumina2": "its pipeline runs the empty text in a pass of its own",
    "kandinsky5": "its pipeline runs the empty text in a pass of its own",
    "wan": "its pipeline runs the empty text in a pass of its own",
}
GUIDANCE = {"flux2": 4.0, "z_image": 0.0}
"""Guidance scale of pipelines that are run at another one than 3.5; Z-Image's second pass has the texts first."""
SIDES = (33, 34, 40, 256)
"""Image sides at which a family either works or raises one of our errors."""
_KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


@dataclass
class Case:
    """The tiny checkpoint of one family."""

    name: str
    path: str
    info: BackboneInfo
    loaded: dict[str, DiffusionFeatures] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The whole blocks, in the order in which they run."""
        return self.info.spec.blocks

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all families take: every block at two timesteps."""
        last = self.info.spec.schedule.n_timesteps - 1
        condition = {"condition": self.info.spec.conditions[0]}
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
        """Whether there is anything to train in the denoiser."""
        return any(True for _ in self.info.spec.denoiser.parameters())

    @cached_property
    def reference(self) -> Reference:
        """Two steps of the diffusers pipeline, or of a research checkpoint's own formulas."""
        return (
            OWN[self.name](self.path)
            if self.name in OWN
            else run_pipeline(self.path, self.name, self.info.spec.conditions)
        )


def make_case(name: str, folder: Path) -> Case:
    """Write the tiny checkpoint of a family below `folder`, and describe it."""
    made = FAMILIES.load(name).tiny(folder / name)
    path = "pixels" if name == "pixels" else str(made)  # that family is named, not found on disk
    return Case(name, path, backbone_info(path, resolution=RESOLUTION))


@torch.no_grad()
def run_pipeline(
    path: str, name: str, conditions: tuple[str, ...], grid: Sequence[int] | Literal["own"] | None = None
) -> Reference:
    """Run the pipeline of a checkpoint at RESOLUTION for four steps and record the first two.

    Args:
        grid: timesteps that a flow model visits; "own" for those of its scheduler, None for whole ones.
    """
    import diffusers

    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "resolutions"):  # Kandinsky 5 runs these alone
        pipeline.resolutions = [(RESOLUTION, RESOLUTION)]
    if name == "hidream":  # its pipeline scales all images to this one
        pipeline.default_sample_size = RESOLUTION // pipeline.vae_scale_factor
    scheduler = pipeline.scheduler
    is_flow = scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"  # none: a FlowMatch...
    if isinstance(grid, Sequence) and grid != "own":
        pipeline.scheduler = scheduler = _euler_on(grid)
    elif grid is None and type(scheduler).__name__.startswith("FlowMatch"):  # whole timesteps
        scheduler = type(scheduler).from_config(scheduler.config, shift=1.0, use_dynamic_shifting=False)
        pipeline.scheduler = scheduler
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    calls: list[dict[str, Any]] = []
    predicted: list[Tensor] = []
    after: list[Tensor] = []
    signature = inspect.signature(type(denoiser).forward)
    step = scheduler.step

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(signature.bind(module, *args, **kwargs).arguments)
        given.pop("self")
        calls.append(tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given))

    def record_step(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        predicted.append(output.clone())
        found = step(output, *args, **kwargs)
        after.append(found[0] if isinstance(found, tuple) else found.prev_sample)
        return found

    scheduler.step = record_step
    handle = denoiser.register_forward_pre_hook(record, with_kwargs=True)
    pipeline(**_arguments(pipeline, name))
    handle.remove()
    first = next(name for name in signature.parameters if name != "self")
    rows = len(calls[0][first])
    plain: list[str | int] = (
        [*_prompts(name)] if "caption" in conditions else [*CLASSES] if "label" in conditions else ["", ""]
    )
    guided = rows == 2 * len(plain)

    def latent(x: Any) -> Tensor:
        if isinstance(x, list):  # Z-Image: one frame of each image
            return torch.stack(x)[:, :, 0]
        if x.ndim == 5 and name == "cogvideox":  # the only frame
            return x[:, 0]
        if x.ndim == 5:  # Wan, Kandinsky 5: channels of the only frame
            return x[:, :, 0] if x.shape[2] == 1 else x[:, 0].movedim(-1, 1)
        if x.ndim != 3:
            return x
        if name == "ltx" or not hasattr(pipeline, "_unpack_latents"):  # FLUX.2: one latent place is a token
            return x.transpose(1, 2).unflatten(2, (round(x.shape[1] ** 0.5), -1))
        maps: Tensor = pipeline._unpack_latents(x, RESOLUTION, RESOLUTION, pipeline.vae_scale_factor)
        return maps.flatten(1, 2) if maps.ndim == 5 else maps  # Qwen-Image: channels of the only frame

    steps = [
        Step(round(float(scheduler.timesteps[i])), calls[i], latent(calls[i][first]), latent(predicted[i]))
        for i in range(2)
    ]
    return Reference(
        denoiser=denoiser,
        prediction="flow" if is_flow else _KINDS[scheduler.config.prediction_type],
        values=["", "", *plain] if guided else plain,
        guidance=3.5 if guided else None,
        steps=steps,
        latents=latent(after[-1]),
        grid=tuple(float(t) for t in scheduler.timesteps),
    )


def _euler_on(grid: Sequence[int]) -> Any:
    """Make a scheduler of diffusers that visits given timesteps, whatever its pipeline asks for."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Fixed(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, n: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
            super().set_timesteps(sigmas=[t / 1000 for t in grid], device=device)

    return Fixed()


def _prompts(name: str) -> list[str]:
    return OWN_PROMPTS.get(name, PROMPTS)


def _arguments(pipeline: Any, name: str) -> dict[str, Any]:
    """Choose the arguments that a pipeline's call has."""
    zeros = torch.zeros(len(PROMPTS), getattr(getattr(pipeline, "unet", pipeline).config, "encoder_hid_dim", None) or 1)
    known = {
        "prompt": list(_prompts(name)),  # Z-Image writes into it
        "class_labels": CLASSES,
        "image_embeds": zeros,
        "negative_image_embeds": zeros,
        "batch_size": len(PROMPTS),
        "height": RESOLUTION,
        "width": RESOLUTION,
        "num_frames": 1,
        "guidance_scale": 1.0 if name in UNGUIDED else GUIDANCE.get(name, 3.5),
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    takes = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in known.items() if name in takes}


def open_whole(case: Case) -> tuple[Backbone, BackboneSpec]:
    """Load our side whole."""
    checkpoint = locate(case.path)
    family = family_of(checkpoint)
    spec = family.spec(checkpoint, RESOLUTION)
    return load_whole(checkpoint, family, spec, LoadOptions()), spec


@torch.no_grad()
def denoise(backbone: Backbone, reference: Reference, step: Step) -> Prediction:
    """Run our denoiser on the latents, timestep and conditions of a pipeline's step."""
    times = torch.full((len(step.sample),), step.t)
    condition: Condition = backbone.encode_conditions(reference.values)
    return backbone.denoise(step.sample, times, condition)


def check_conditioning(case: Case) -> None:
    """Our denoiser is called with the arguments of the pipeline's: sample, timestep, texts, masks, ids, guidance."""
    backbone, _ = open_whole(case)
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(type(backbone.denoiser).forward)

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(dict(signature.bind(module, *args, **kwargs).arguments))

    backbone.denoiser.register_forward_pre_hook(record, with_kwargs=True)
    for step in case.reference.steps:
        denoise(backbone, case.reference, step)
        rows = len(step.sample)
        ours, theirs = (_plain(_without_padding(given), rows) for given in (calls[-1], step.given))
        assert_same(ours, theirs, f"{case.name} at t={step.t}")


def _without_padding(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Cut texts to the longest one of the batch where a mask hides the padding (Qwen-Image, Kandinsky 5)."""
    name = "encoder_hidden_states"
    mask = given.get(f"{name}_mask")
    if "text_rope_pos" in given:  # its masks are not arguments of the network
        n = int(given[name].any(-1).sum(1).max())
        return {**given, name: given[name][:, :n], "text_rope_pos": given["text_rope_pos"][:n]}
    if not isinstance(mask, Tensor):
        return given
    longest = int(mask.sum(1).max())
    assert not mask[:, longest:].any() and not given[name][:, longest:].any()
    return {**given, name: given[name][:, :longest], f"{name}_mask": mask[:, :longest]}


def _plain(given: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Drop what is not given, and bring numbers into one form."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("self", "return_dict") or value is None:
            continue
        if isinstance(value, Mapping):
            value = _plain(value, rows)
            if not value:
                continue
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            value = torch.full((rows,), float(value))
        found[name] = value.float() if isinstance(value, Tensor) else value
    return found


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Compare nested arguments."""
    if isinstance(theirs, Mapping):
        assert set(ours) == set(theirs), f"{where}: ours {sorted(ours)}, the pipeline's {sorted(theirs)}"
        for name, value in theirs.items():
            assert_same(ours[name], value, f"{where}: {name}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), f"{where}: {len(ours)}, the pipeline's {len(theirs)}"
        for i, value in enumerate(theirs):
            assert_same(ours[i], value, f"{where}: {i}")
    elif isinstance(theirs, Tensor):
        assert ours.shape == theirs.shape, f"{where}: {tuple(ours.shape)}, the pipeline's {tuple(theirs.shape)}"
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5, msg=lambda m: f"{where}: {m}")
    else:
        assert ours == theirs, where


def check_prediction(case: Case) -> None:
    """Our prediction is what the pipeline gives to its scheduler, and its kind is that of the scheduler."""
    backbone, spec = open_whole(case)
    reference = case.reference
    assert spec.prediction == backbone.prediction == reference.prediction
    for step in reference.steps:
        found = denoise(backbone, reference, step)
        assert found.kind == reference.prediction
        value = found.value
        if reference.guidance is not None:
            without, with_condition = value.chunk(2)
            value = without + reference.guidance * (with_condition - without)
        assert_same(value, step.predicted, f"{case.name}, prediction at t={step.t}")


def check_sampling(case: Case) -> None:
    """A flow model that takes prompts is sampled as by its pipeline: at its noise levels, up to 1, with its latents."""
    spec = case.info.spec
    if spec.prediction != "flow" or "caption" not in spec.conditions:
        return
    own = run_pipeline(case.path, case.name, spec.conditions, "own")
    config = PromptExtraction(
        backbone=BackboneConfig(path=case.path, device="cpu", channels_last=False),
        prompts="unused.txt",
        features=PromptFeaturesConfig(
            taps=case.blocks[:1], timesteps=(1000,), keep=("latents",), resolution=RESOLUTION, pool="none"
        ),
        sampling=SamplingConfig(steps=4, guidance=own.guidance and own.guidance - 1),
    )
    model = PromptFeatures.from_config(config)
    grid = model.plan.grid
    assert max(abs(a - b) for a, b in zip(grid, own.grid, strict=True)) <= 1, f"{case.name}: {grid} for {own.grid}"
    reference = run_pipeline(case.path, case.name, spec.conditions, grid)
    prompts = [str(value) for value in reference.values[-len(reference.steps[0].sample) :]][-2:]
    noise = dict(zip([start_key(i) for i in (0, 1)], reference.steps[0].sample[-2:], strict=True))
    with patch.object(prompt_features, "noise_for", lambda seed, key, *further: noise[key]):
        found = model(prompts, [0, 1])["latents@t0:caption:none"]
    assert reference.latents is not None
    assert_same(found, reference.latents, f"{case.name}, latents after four steps")


def check_inner_taps(case: Case) -> None:
    """The listed taps are all modules that output an image, and give what plain hooks on the pipeline's network do."""
    backbone, spec = open_whole(case)
    step = case.reference.steps[1]
    expected, text_only = plain_maps(case.reference.denoiser, step, spec.latent_shape[1])
    taps = backbone_info(case.path, resolution=RESOLUTION, inner=True).taps
    listed = [tap.path for tap in taps if "/" not in tap.path]
    assert set(listed) == set(expected), set(listed) ^ set(expected)
    unflagged = [path for path in text_only if not spec.layout.is_text(path)]
    assert not unflagged, f"{case.name}: modules of the text that are not marked as such: {unflagged}"
    capture = Capture(backbone.denoiser, listed, layout=spec.layout, read=lambda x, rows: no_pool(x))
    found = capture(partial(denoise, backbone, case.reference, step))
    for path, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert found[path].shape == value.shape, path
        torch.testing.assert_close(found[path], value, atol=2e-5 * scale, rtol=0, msg=lambda m, p=path: f"{p}: {m}")


def plain_maps(network: nn.Module, step: Step, side: int) -> tuple[dict[str, Tensor], list[str]]:
    """Read every module with plain hooks; decide by sizes and by a second image which outputs are of the image.

    Returns: feature maps by path, of modules that run once; and the modules whose outputs are of the text alone.
    """
    first = _outputs(network, step.given)
    name = next(iter(step.given))
    second = _outputs(network, {**step.given, name: tree_map(lambda x: x.flip(-1) + 0.1, step.given[name])})
    text = step.given.get("encoder_hidden_states")
    n_text = text.shape[1] if isinstance(text, Tensor) else 0
    if isinstance(registers := getattr(network, "register_tokens", None), Tensor):  # AuraFlow: before the text
        n_text += registers.shape[1]
    rows = _rows(network, step.given)
    if "encoder_hidden_states_llama3" in step.given and rows is not None:
        n_text = rows.longest
    assert n_text not in _places(side), f"{n_text} text tokens could be taken for image tokens"
    maps: dict[str, Tensor] = {}
    text_only: list[str] = []
    for path, runs in first.items():
        both = [tuple(map(_one_frame, pair)) for pair in zip(runs[0], second[path][0], strict=True)]
        wide = [(a, b) for a, b in both if a.ndim in (3, 4)]
        of_image = [a for a, b in wide if not torch.equal(a, b) and n_text not in a.shape[1 : a.ndim - 1]]
        found = [
            x for a in of_image if (x := _as_map(network.get_submodule(path), path, a, side, n_text, rows)) is not None
        ]
        if found and len(runs) == 1:
            maps[path] = found[0]
        elif wide and not of_image:
            text_only.append(path)
    return maps, text_only


@dataclass
class Rows:
    """Where images are in a sequence with texts of different lengths: the longest text, the image's start by row."""

    longest: int
    starts: list[int]


def _rows(network: nn.Module, given: Mapping[str, Any]) -> Rows | None:
    """Find it by the pass of a network."""
    if isinstance(texts := given.get("cap_feats"), list):  # Z-Image: the image is first, texts are filled up
        return Rows(max(len(text) + -len(text) % 32 for text in texts), [0] * len(texts))
    if isinstance(t5 := given.get("encoder_hidden_states_t5"), Tensor) and "encoder_hidden_states_llama3" in given:
        return Rows(3 * t5.shape[1], [0] * len(t5))  # HiDream: the image is first, then T5 and twice Llama
    if hasattr(network, "context_refiner"):  # Lumina 2: the image follows a text of each row's own length
        lengths = given["encoder_attention_mask"].sum(1).tolist()
        return Rows(max(lengths), lengths)
    return None


def _one_frame(x: Tensor) -> Tensor:
    """Bring `[batch, 1, height, width, channels]` and `[batch, channels, 1, height, width]` into the layout of maps."""
    if x.ndim == 5 and x.shape[2] == 1:
        return x[:, :, 0]
    return x[:, 0].movedim(-1, 1) if x.ndim == 5 and x.shape[1] == 1 else x


@torch.no_grad()
def _outputs(network: nn.Module, given: Mapping[str, Any]) -> dict[str, list[list[Tensor]]]:
    """Run a network; path -> tensors of each of its runs."""
    found: dict[str, list[list[Tensor]]] = {}

    def hook(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            leaves = [x.clone() for x in tree_leaves(output) if isinstance(x, Tensor)]
            found.setdefault(path, []).append(leaves)

        return note

    handles = [module.register_forward_hook(hook(path)) for path, module in network.named_modules() if path]
    network(**given)
    for handle in handles:
        handle.remove()
    return found


def _places(side: int) -> dict[int, int]:
    """Numbers of places -> side, of a square map halved again and again."""
    return {(side >> level) ** 2: side >> level for level in range(side.bit_length())}


_HEAD_NORMS = ("norm_q", "norm_k", "q_norm", "k_norm", "query_norm", "key_norm")
"""Names of normalisations of heads."""


def _as_map(module: nn.Module, path: str, x: Tensor, side: int, n_text: int, rows: Rows | None) -> Tensor | None:
    """Lay an output of the image out as [batch, channels, height, width], by sizes alone."""
    places = _places(side)
    if rows is not None and x.ndim in (3, 4) and x.shape[1] - rows.longest in places:
        n_image = x.shape[1] - rows.longest
        x = torch.stack([row[n : n + n_image] for row, n in zip(x, rows.starts, strict=True)])
    if x.ndim == 4 and path.rpartition(".")[2] in _HEAD_NORMS:  # heads
        axis = next(axis for axis in (1, 2) if x.shape[axis] in places or x.shape[axis] - n_text in places)
        x = x.movedim(axis, 1).flatten(2)
    elif x.ndim == 4:
        return x
    elif isinstance(module, nn.GroupNorm):
        x = x.transpose(1, 2)
    if x.shape[1] not in places and x.shape[1] - n_text in places:  # diffusers puts the text first
        x = x[:, n_text:]
    if x.shape[1] not in places:
        return None
    return x.transpose(1, 2).unflatten(2, (places[x.shape[1]], -1))


def check_resolutions(case: Case) -> None:
    """A resolution that a family cannot run is refused with one of our errors before anything runs."""
    for side in SIDES:
        try:
            plan_for(case.path, **{**case.settings, "resolution": side})
        except DiffprobeError:
            continue


CHECKS: dict[str, Callable[[Case], None]] = {
    "conditioning": check_conditioning,
    "prediction": check_prediction,
    "inner_taps": check_inner_taps,
    "resolutions": check_resolutions,
    "sampling": check_sampling,
}
"""Checks against the reference, by name; families in NO_REFERENCE have `resolutions` alone."""


def checks_of(name: str) -> list[str]:
    """List the checks that a family takes."""
    return ["resolutions"] if name in NO_REFERENCE else list(CHECKS)
