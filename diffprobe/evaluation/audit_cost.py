"""What an audit costs, before it is run: denoiser passes of latents and steering; and its prompts as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffprobe.analysis.audit.prompts import all_prompts, subject_prompts
from diffprobe.core.errors import ConfigError, WeightsMissing
from diffprobe.evaluation.audit_settings import Audit

if TYPE_CHECKING:
    from diffprobe.config.prompt_schema import PromptExtraction

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class AuditCost:
    """Rows that go through the denoiser."""

    n_prompts: int
    """Prompts whose latents are read."""
    seeds: int | None
    """Samples per prompt; None without an extraction."""
    per_sample: int | None
    """Passes per sample; None without an extraction."""
    is_planned: bool
    """Whether the passes are those of the checkpoint's plan; otherwise they follow from the settings alone."""
    steering: int
    """Passes of the steering."""

    @property
    def extraction(self) -> int | None:
        """Passes of the extraction."""
        return None if self.seeds is None or self.per_sample is None else self.n_prompts * self.seeds * self.per_sample


def cost_of(config: Audit) -> AuditCost:
    """Count the passes of an audit. Raises: errors of the experiment `extraction`."""
    n = len(all_prompts(config))
    steering = 0
    if config.steering is not None:
        steered = sum(config.steering.attribute_of(axis.name) is not None for axis in config.axes)
        steering = config.steering.n_passes(len(config.subjects), len(config.templates), steered)
    if config.extraction is None:
        return AuditCost(n_prompts=n, seeds=None, per_sample=None, is_planned=False, steering=steering)
    extraction = extraction_of(config)
    per_sample, is_planned = _passes(extraction)
    return AuditCost(
        n_prompts=n, seeds=extraction.sampling.seeds, per_sample=per_sample, is_planned=is_planned, steering=steering
    )


def cost_lines(config: Audit, cost: AuditCost, *, speed: float | None) -> list[str]:
    """Return the cost as lines of text.

    Args:
        speed: denoiser passes per second; None leaves hours out.
    """
    lines = [
        f"{len(config.subjects)} subjects, {len(config.axes)} axes, {len(config.templates)} templates: "
        f"{cost.n_prompts:,} prompts"
    ]
    if cost.extraction is None:
        lines.append("extraction is not set: the passes for the latents are not known")
    else:
        note = "" if cost.is_planned else ", by the settings alone, since the checkpoint's files are not here"
        lines.append(
            f"latents ({config.extraction}): {cost.n_prompts:,} prompts x {cost.seeds} seeds x {cost.per_sample} "
            f"passes = {cost.extraction:,} denoiser passes{note}"
        )
    lines.append(f"steering: {cost.steering:,} denoiser passes" if config.steering else "steering: none")
    total = (cost.extraction or 0) + cost.steering
    if speed is None:
        lines.append(f"together {total:,} denoiser passes; --speed PASSES_PER_SECOND gives hours, and "
                     "`diffprobe bench prompts --backbone MODEL` measures it")  # fmt: skip
    else:
        lines.append(f"together {total:,} denoiser passes, {total / speed / 3600:,.1f} hours at {speed:g} passes/s")
    return lines


def check_tokens(config: Audit) -> list[str]:
    """Check subjects and prompts with the tokenizer of the extraction's model; return lines that state what was done.

    Raises: ConfigError, which names them, for subjects without a token of their own, and for subjects with a prompt
        that the tokenizer cuts, if the extraction does not allow it.
    """
    if config.extraction is None:
        return []
    extraction = extraction_of(config)
    try:
        tokenizer = _tokenizer(extraction)
    except WeightsMissing:
        return ["the prompts were not checked by a tokenizer: the checkpoint's files are not here"]
    if tokenizer is None:
        return ["the prompts are checked when their latents are extracted"]
    length = int(tokenizer.model_max_length)
    require_tokens(config, tokenizer, length, allow_truncated=extraction.truncated == "allow")
    return [f"every subject has tokens, and no prompt has more than the {length} that the text encoder reads"
            if extraction.truncated == "refuse" else "every subject has tokens"]  # fmt: skip


def require_tokens(config: Audit, tokenizer: Any, length: int, *, allow_truncated: bool = False) -> None:
    """Check that each subject has tokens, and that no prompt is longer than the text encoder reads.

    Args:
        tokenizer: of transformers.
        length: tokens that the text encoder reads, those of start and end included.
        allow_truncated: whether prompts may be cut.

    Raises: ConfigError, which names the subjects.
    """
    names = [one.name for one in (*config.all_subjects, *config.all_neutral)]
    empty = _n_tokens(tokenizer, [""])[0]
    texts = [one.text for one in (*config.all_subjects, *config.all_neutral)]
    blank = [
        name for name, text, by_name, by_text in
        zip(names, texts, _n_tokens(tokenizer, names), _n_tokens(tokenizer, texts), strict=True)
        if min(by_name, by_text) <= empty
    ]  # fmt: skip
    if blank:
        raise ConfigError(
            f"{len(blank)} of {len(names)} subjects have no token: the model cannot tell their prompts apart.",
            *(f"subject: {name!r}" for name in blank[:_SHOWN]), fix="write them in words that the tokenizer knows",
        )  # fmt: skip
    if allow_truncated:
        return
    prompts = all_prompts(config)
    lengths = dict(zip(prompts, _n_tokens(tokenizer, prompts), strict=True))
    cut = [text for text in prompts if lengths[text] > length]
    if not cut:
        return
    plain = {one.name: texts for one, texts in zip(config.all_subjects, subject_prompts(config), strict=True)}
    own = [name for name, found in plain.items() if any(lengths[text] > length for text in found)]
    longest = max(cut, key=lambda text: lengths[text])
    raise ConfigError(
        f"{len(cut)} of {len(prompts)} prompts are cut by the tokenizer, which reads {length} tokens.",
        *([f"subjects: {', '.join(own[:_SHOWN])}"] if own else ["subjects: only with the words of an axis"]),
        f"longest, {lengths[longest]} tokens: '{longest[:120]}'",
        fix="shorter subjects or templates; or truncated=allow in the extraction, and no control by that subject",
    )  # fmt: skip


def extraction_of(config: Audit) -> "PromptExtraction":
    """Compose the experiment that makes the latents. Raises: ConfigError."""
    from diffprobe.config.compose import load

    assert config.extraction is not None
    found: PromptExtraction = load(config.extraction, [], kinds=("extract_prompts",))
    return found


def _passes(extraction: "PromptExtraction") -> tuple[int, bool]:
    """Return the passes per sample, and whether the checkpoint was there to plan them."""
    from diffprobe.backbones.prompt_plan import plan_prompts

    try:
        return plan_prompts(extraction).passes, True
    except WeightsMissing:
        sampling = extraction.sampling
        branches = 2 if (sampling.guidance or 0) > 0 else 1
        return sampling.steps * branches + len(extraction.features.reread), False


def _tokenizer(extraction: "PromptExtraction") -> Any:
    """Return the CLIP tokenizer of a checkpoint; None for models with another one. Raises: WeightsMissing."""
    from transformers import CLIPTokenizer

    from diffprobe.backbones.prompt_plan import plan_prompts
    from diffprobe.backbones.tokenizer_files import load_tokenizer

    checkpoint = plan_prompts(extraction).read.checkpoint
    kind = str(checkpoint.index.get("tokenizer", ["", ""])[1]).removesuffix("Fast")
    if checkpoint.folder is None or kind != CLIPTokenizer.__name__:
        return None
    return load_tokenizer(CLIPTokenizer, checkpoint.part("tokenizer"))


def _n_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, those of start and end included."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False).input_ids]
