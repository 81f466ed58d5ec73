import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffprobe.generative.architectures import BetaSchedule, DenoiserShape, make_text_encoder, make_unet
from diffprobe.generative.export import SOURCE_KEYS, save_pipeline
from diffprobe.generative.tokenizer import train_tokenizer

SHAPE = DenoiserShape(
    channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
    text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
)  # fmt: skip


def run_alone(folder: Path) -> tuple[int, int]:
    """Run a pipeline as its card does, with nothing given but the prompt; return the size of the image."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    return pipeline("noto emoji, red heart", num_inference_steps=2).images[0].size


def test_the_shipped_model_runs_with_nothing_but_a_prompt() -> None:
    assert run_alone(Path(str(files("diffprobe") / "assets" / "emoji-sd"))) == (64, 64)


def test_the_files_hold_halves_and_no_folder_of_this_machine(tmp_path):
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "opened")  # fmt: skip
    vae = AutoencoderKL.from_pretrained(tmp_path / "opened")
    unet = make_unet(SHAPE, latent_channels=2, latent_side=8, seed=0)
    train_tokenizer(["a red cat", "a blue dog"], vocab_size=540, max_tokens=16).save_pretrained(tmp_path / "words")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words", local_files_only=True)
    text_encoder = make_text_encoder(SHAPE, tokenizer=tokenizer, seed=0)
    folder = tmp_path / "saved"
    save_pipeline(
        folder,
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=BetaSchedule().scheduler(),
    )

    assert str(tmp_path) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    for described in ("vae/config.json", "unet/config.json", "tokenizer/tokenizer_config.json"):
        assert not set(SOURCE_KEYS) & set(json.loads((folder / described).read_text()))
    for part in (vae, unet, text_encoder):
        assert {value.dtype for value in part.parameters()} == {torch.float32}  # the run's own stay as they are
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert all(stored[name].equal(value.half()) for name, value in unet.state_dict().items())
    assert (folder / "tokenizer" / "tokenizer.json").read_text().count("\n") <= 1
    assert run_alone(folder) == (16, 16)  # transformers would compute in the stored halves, diffusers does not
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float32"
