"""A test of the tests: the contract of `contract.py` fails for families with one deliberate fault each."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from diffprobe.backbones import taps
from diffprobe.backbones.taps import backbone_info
from diffprobe.core.registry import FAMILIES
from tests.backbones.contract import CHECKS, RESOLUTION, Case, make_case


@dataclass(frozen=True)
class Mutation:
    """One fault in the file of a family: a text that is replaced, and the check that must fail."""

    family: str
    what: str
    old: str
    new: str
    check: str


MUTATIONS = [
    Mutation("flux", "timestep scale", "timesteps.float() / 1000", "timesteps.float()", "conditioning"),
    Mutation("flux", "guidance", "_GUIDANCE = 3.5", "_GUIDANCE = 1.0", "conditioning"),
    Mutation("flux", "text length", "{True: 512, False: 256}", "{True: 128, False: 256}", "conditioning"),
    Mutation("flux", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("flux", "joint pattern", r'joint=rf"{_SINGLE}\..+"', r'joint=rf"{_SINGLE}\.proj_mlp"', "inner_taps"),
    Mutation("flux", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("flux", "unpacking", "x.permute(0, 3, 1, 4, 2, 5)", "x.permute(0, 3, 1, 5, 2, 4)", "prediction"),
    Mutation("flux", "prediction kind", "prediction=spec.prediction", 'prediction="epsilon"', "prediction"),
    Mutation("pixart", "padding mask", '_mask": mask}', '_mask": torch.ones_like(mask)}', "conditioning"),
    Mutation("pixart", "mask in the text encoder", "masked=True", "masked=False", "conditioning"),
    Mutation("pixart", "lower case", "prompt.lower().strip()", "prompt.strip()", "conditioning"),
    Mutation(
        "pixart", "learned variance", "self.predicted(output, x_t)", "self.predicted(output.flip(1), x_t)", "prediction"
    ),
    Mutation("sd3", "layer of the states", "hidden_states[-2]", "hidden_states[-1]", "conditioning"),
    Mutation("sd3", "heads", r'heads=rf"{_BLOCK}\.attn2?\.norm_[qk]"', "heads=None", "inner_taps"),
    Mutation("sd3", "image of a joint block", "image_second=_BLOCK", "image_second=None", "inner_taps"),
    Mutation("sdxl", "zeros for the empty text", "        if self._zeros:", "        if False:", "conditioning"),
    Mutation("sdxl", "order of sizes", "side, side, 0, 0, side, side", "0, 0, side, side, side, side", "conditioning"),
    Mutation("auraflow", "timestep scale", "timesteps.float() / 1000", "timesteps.float()", "conditioning"),
    Mutation("auraflow", "states of padding", "states * mask[..., None]", "states", "conditioning"),
    Mutation("auraflow", "mask in the text encoder", "masked=True", "masked=False", "conditioning"),
    Mutation("auraflow", "registers", "n_text=n_registers + _LENGTH", "n_text=_LENGTH", "inner_taps"),
    Mutation("auraflow", "single block", r'joint=rf"{_SINGLE}(\..+)?"', r'joint=rf"{_SINGLE}\..+"', "inner_taps"),
    Mutation("auraflow", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("auraflow", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation(
        "qwen_image", "timestep scale", "timesteps.to(x_t.dtype) / 1000", "timesteps.to(x_t.dtype)", "conditioning"
    ),
    Mutation("qwen_image", "template", "template.format(prompt)", "prompt", "conditioning"),
    Mutation("qwen_image", "dropped tokens", "[-1][:, dropped:]", "[-1][:, :-dropped]", "conditioning"),
    Mutation("qwen_image", "layer of the states", "text.hidden(tokens)[-1]", "text.hidden(tokens)[-2]", "conditioning"),
    Mutation("qwen_image", "states of padding", "states * mask[..., None]", "states", "conditioning"),
    Mutation("qwen_image", "padding mask", '_mask": mask}', '_mask": torch.ones_like(mask)}', "conditioning"),
    Mutation(
        "qwen_image", "rotary tables", "qwen.pos_embed = type(pos)(**settings)", "type(pos)(**settings)", "prediction"
    ),
    Mutation("qwen_image", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("qwen_image", "image of a block", "image_second=_BLOCK", "image_second=None", "inner_taps"),
    Mutation("qwen_image", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("qwen_image", "prediction", "self.predicted(unpack(output", "self.predicted(-unpack(output", "prediction"),
    Mutation("flux2", "timestep scale", "timesteps.to(x_t.dtype) / 1000", "timesteps.to(x_t.dtype)", "conditioning"),
    Mutation("flux2", "guidance", "(10, 20, 30), 4.0", "(10, 20, 30), 3.5", "conditioning"),
    Mutation("flux2", "layers of the states", "(10, 20, 30), 4.0", "(10, 20, 29), 4.0", "conditioning"),
    Mutation("flux2", "system message", "text.render([told, {", "text.render([{", "conditioning"),
    Mutation("flux2", "text length", "_LENGTH = 512", "_LENGTH = 511", "conditioning"),
    Mutation(
        "flux2", "positions of the text", "(zero, zero, zero, words)", "(words, zero, zero, zero)", "conditioning"
    ),
    Mutation("flux2", "positions", "(zero, rows, columns, zero)", "(zero, columns, zero, rows)", "conditioning"),
    Mutation("flux2", "single block", r'joint=rf"{_SINGLE}(\..+)?"', r'joint=rf"{_SINGLE}\..+"', "inner_taps"),
    Mutation("flux2", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("flux2", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation(
        "flux2",
        "prediction",
        "self.predicted(output.transpose(1, 2)",
        "self.predicted(-output.transpose(1, 2)",
        "prediction",
    ),
    Mutation(
        "sana",
        "instruction",
        "([x for x in cleaned if x], instruction)",
        '([x for x in cleaned if x], "")',
        "conditioning",
    ),
    Mutation(
        "sana",
        "empty text",
        '([""] if "" in cleaned else [], "")',
        '([""] if "" in cleaned else [], instruction)',
        "conditioning",
    ),
    Mutation("sana", "lower case", "prompt.lower().strip()", "prompt.strip()", "conditioning"),
    Mutation("sana", "text length", "_LENGTH = 300", "_LENGTH = 299", "conditioning"),
    Mutation("sana", "padding mask", "torch.stack(masks)}", "torch.ones_like(torch.stack(masks))}", "conditioning"),
    Mutation("sana", "timestep scale", '"timestep_scale", 1.0)', '"no_such_setting", 1.0)', "conditioning"),
    Mutation("sana", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("sana", "prediction", "self.predicted(output, x_t)", "self.predicted(output.flip(1), x_t)", "prediction"),
    Mutation(
        "hunyuandit", "original size", "_ORIGINAL_SIZE = (1024, 1024)", "_ORIGINAL_SIZE = (64, 64)", "conditioning"
    ),
    Mutation("hunyuandit", "base of the positions", "_BASE_PIXELS = 512", "_BASE_PIXELS = 1024", "conditioning"),
    Mutation("hunyuandit", "mask in the T5", "masked=True", "masked=False", "conditioning"),
    Mutation("hunyuandit", "mask of the BERT", '_mask": mask,', '_mask": torch.ones_like(mask),', "conditioning"),
    Mutation("hunyuandit", "heads", r'heads=rf"{_BLOCK}\.attn[12]\.norm_[qk]"', "heads=None", "inner_taps"),
    Mutation("hunyuandit", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation(
        "hunyuandit",
        "learned variance",
        "self.predicted(output, x_t)",
        "self.predicted(output.flip(1), x_t)",
        "prediction",
    ),
    Mutation("hunyuandit", "prediction kind", "prediction=spec.prediction", 'prediction="epsilon"', "prediction"),
    Mutation("lumina2", "direction", "1 - timesteps.float() / 1000", "timesteps.float() / 1000", "conditioning"),
    Mutation("lumina2", "sign", "self.predicted(-output, x_t)", "self.predicted(output, x_t)", "prediction"),
    Mutation("lumina2", "instruction", "<Prompt Start> ", "<Prompt> ", "conditioning"),
    Mutation("lumina2", "layer of the states", "hidden_states[-2]", "hidden_states[-1]", "conditioning"),
    Mutation("lumina2", "rows of texts", "            row_texts=texts,\n", "", "inner_taps"),
    Mutation("lumina2", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("lumina2", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("z_image", "direction", "(1000 - timesteps.float()) / 1000", "timesteps.float() / 1000", "conditioning"),
    Mutation("z_image", "sign", "self.predicted(-torch.stack", "self.predicted(torch.stack", "prediction"),
    Mutation("z_image", "layer of the states", "layers=[last]", "layers=[last - 1]", "conditioning"),
    Mutation("z_image", "thinking", '"enable_thinking": True', '"enable_thinking": False', "conditioning"),
    Mutation("z_image", "padding", "text[:n] for text", "text for text", "conditioning"),
    Mutation("z_image", "rows of texts", "            row_texts=texts,\n", "", "inner_taps"),
    Mutation("z_image", "image first", "texts.start = _filled(texts.n_image)", "texts.start = None", "inner_taps"),
    Mutation("z_image", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("z_image", "text-only flag", '            text_only=r"context_refiner(\\..*)?",\n', "", "inner_taps"),
    Mutation(
        "kandinsky5", "timestep scale", "timesteps.float(), cond", "timesteps.float() / 1000, cond", "conditioning"
    ),
    Mutation("kandinsky5", "template", "template.format(prompt)", "prompt", "conditioning"),
    Mutation("kandinsky5", "cleaning", "clean_text(prompt) for", "prompt for", "conditioning"),
    Mutation("kandinsky5", "layer of the states", "text.hidden(tokens)[-1]", "text.hidden(tokens)[-2]", "conditioning"),
    Mutation("kandinsky5", "pooled text", "clip(cleaned)", "clip(prompts[::-1])", "conditioning"),
    Mutation("kandinsky5", "positions", "device=x_t.device) for n", "device=x_t.device).flip(0) for n", "conditioning"),
    Mutation("kandinsky5", "padding", "attn_mask=self._texts.there", "attn_mask=None", "prediction"),
    Mutation("kandinsky5", "prediction", "self.predicted(output[", "self.predicted(-output[", "prediction"),
    Mutation("kandinsky5", "one frame", "channels_last=r", "channels_first=r", "inner_taps"),
    Mutation("kandinsky5", "head order", "heads_last=True", "heads_last=False", "inner_taps"),
    Mutation("kandinsky5", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("wan", "timestep scale", "x_t, timesteps, cond", "x_t, timesteps / 1000, cond", "conditioning"),
    Mutation("wan", "cleaning", "clean_text(prompt) for", "prompt for", "conditioning"),
    Mutation("wan", "mask in the text encoder", "masked=True", "masked=False", "conditioning"),
    Mutation("wan", "states of padding", "states * mask[..., None]", "states", "conditioning"),
    Mutation("wan", "text length", "_LENGTH = 512", "_LENGTH = 226", "conditioning"),
    Mutation("wan", "prediction", "self.predicted(_run(", "self.predicted(-_run(", "prediction"),
    Mutation("wan", "one frame", 'frame_third="patch_embedding"', "frame_third=None", "inner_taps"),
    Mutation("wan", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("cogvideox", "timestep", "network, x_t, timesteps,", "network, x_t, timesteps // 2,", "conditioning"),
    Mutation("cogvideox", "mask in the text encoder", "text(prompts)", "text(prompts, masked=True)", "conditioning"),
    Mutation("cogvideox", "positions", "config.sample_width // p,", "config.sample_width,", "conditioning"),
    Mutation("cogvideox", "prediction kind", "prediction=spec.prediction", 'prediction="epsilon"', "prediction"),
    Mutation("cogvideox", "prediction", "self.predicted(_run(", "self.predicted(-_run(", "prediction"),
    Mutation("cogvideox", "joint pattern", "joint=_JOINT", "joint=None", "inner_taps"),
    Mutation("cogvideox", "heads", r'heads=rf"{_BLOCK}\.attn1\.norm_[qk]"', "heads=None", "inner_taps"),
    Mutation("cogvideox", "text-only flag", r'text_only=r"patch_embed\.text_proj"', "text_only=None", "inner_taps"),
    Mutation("ltx", "timestep scale", "x_t, timesteps, cond", "x_t, timesteps / 1000, cond", "conditioning"),
    Mutation("ltx", "mask in the text encoder", "text(prompts)", "text(prompts, masked=True)", "conditioning"),
    Mutation("ltx", "padding mask", '_mask": mask}', '_mask": torch.ones_like(mask)}', "conditioning"),
    Mutation("ltx", "text length", "_LENGTH = 128", "_LENGTH = 127", "conditioning"),
    Mutation("ltx", "scale of the positions", "_FRAME_RATE, places, places", "_FRAME_RATE, 1.0, 1.0", "conditioning"),
    Mutation("ltx", "order of the places", "x_t.flatten(2)", "x_t.mT.flatten(2)", "conditioning"),
    Mutation("ltx", "prediction", "self.predicted(output", "self.predicted(-output", "prediction"),
    Mutation("ltx", "text-only flag", "text_only=_TEXT_ONLY, ", "", "inner_taps"),
    Mutation("hidream", "timestep scale", "timesteps.float(), cond", "timesteps.float() / 1000, cond", "conditioning"),
    Mutation("hidream", "text length", "_LENGTH = 128", "_LENGTH = 127", "conditioning"),
    Mutation("hidream", "layers of Llama", "llama.tokens(prompts))[1:]", "llama.tokens(prompts))[:-1]", "conditioning"),
    Mutation(
        "hidream",
        "padding of Llama",
        "pad_token = llama.tokenizer.eos",
        "pad_token = llama.tokenizer.bos",
        "conditioning",
    ),
    Mutation("hidream", "mask in the T5", "masked=True", "masked=False", "conditioning"),
    Mutation(
        "hidream",
        "order of the CLIPs",
        "for clip in clips], dim=-1)",
        "for clip in clips[::-1]], dim=-1)",
        "conditioning",
    ),
    Mutation("hidream", "sign", "self.predicted(-output", "self.predicted(output", "prediction"),
    Mutation("hidream", "image first", "image_first=True", "image_first=False", "inner_taps"),
    Mutation("hidream", "single block", r'joint=rf"{_SINGLE}(\..+)?"', r'joint=rf"{_SINGLE}\..+"', "inner_taps"),
    Mutation("hidream", "text-only flag", "text_only=_TEXT_ONLY", "text_only=None", "inner_taps"),
    Mutation("kandinsky", "embedding", "torch.zeros(len(values)", "torch.ones(len(values)", "conditioning"),
    Mutation("sd_unet", "states", "(prompts)[0]}", "(prompts)[0] * 2}", "conditioning"),
    Mutation("dit", "class", "return int(text) if", "return int(text) + 1 if", "conditioning"),
    Mutation("sit", "direction", "1 - times if self._from_noise", "times if self._from_noise", "conditioning"),
    Mutation("sit", "timestep scale", "timesteps.float() / _STEPS", "timesteps.float()", "conditioning"),
    Mutation("sit", "null class", "n_classes=denoiser.config.num_classes,", "n_classes=9,", "conditioning"),
    Mutation("sit", "sign", "self.predicted(-output if", "self.predicted(output if", "prediction"),
    Mutation(
        "sit",
        "learned variance",
        "-output if self._from_noise else output, x_t",
        "(-output if self._from_noise else output).flip(1), x_t",
        "prediction",
    ),
    Mutation("sit", "prediction kind", '        prediction="flow",\n', '        prediction="epsilon",\n', "prediction"),
    Mutation("sit", "heads", r'heads=r"blocks\.\d+\.attn\.[qk]_norm"', "heads=None", "inner_taps"),
    Mutation("edm2", "noise level", "edm_sigmas(_STEPS).log() / 4", "edm_sigmas(_STEPS).log()", "conditioning"),
    Mutation("edm2", "grid", "(edm_sigmas(_STEPS)", "(edm_sigmas(_STEPS + 1)", "conditioning"),
    Mutation("edm2", "class", 'condition.get("class_labels")', "condition['class_labels'].flip(0)", "conditioning"),
    Mutation("edm2", "sign", "self.predicted(-self.denoiser", "self.predicted(self.denoiser", "prediction"),
    Mutation("edm2", "prediction kind", '        prediction="v",\n', '        prediction="epsilon",\n', "prediction"),
    Mutation("edm", "prediction kind", '        prediction="v",\n', '        prediction="epsilon",\n', "prediction"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The tiny checkpoints, with the reference of each run once."""
    return {name: make_case(name, tmp_path_factory.mktemp("tiny")) for name in {m.family for m in MUTATIONS}}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.family}: {m.what}")
def test_the_text_of_a_fault_is_once_in_its_file(mutation: Mutation) -> None:
    source = Path(str(FAMILIES.load(mutation.family).__file__)).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"'{mutation.old}' has to be once in the file of {mutation.family}"


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.family}: {m.what}")
def test_the_contract_fails_for_a_fault(
    mutation: Mutation, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = copy_of(cases[mutation.family], monkeypatch, mutation.old, mutation.new)
    with pytest.raises(Exception) as caught:
        CHECKS[mutation.check](case)
    assert not isinstance(caught.value, (SyntaxError, NameError)), caught.value


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({mutation.family for mutation in MUTATIONS}))
def test_the_contract_holds_for_a_copy_without_a_fault(
    family: str, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = copy_of(cases[family], monkeypatch, "def matches(", "def matches(")
    for check in sorted({mutation.check for mutation in MUTATIONS if mutation.family == family}):
        CHECKS[check](case)


def copy_of(sound: Case, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> Case:
    """Put a copy of a family's file, with one text replaced, in the place of the family."""
    reference = sound.reference
    module = FAMILIES.load(sound.name)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    copy = ModuleType(module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, copy)
    monkeypatch.setattr(taps, "_traces", {})
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), copy.__dict__)
    case = Case(sound.name, sound.path, backbone_info(sound.path, resolution=RESOLUTION))
    vars(case)["reference"] = reference
    return case
