"""A tiny model that uses one direction of a tap and not another, and the run of an autoencoder that has both.

The last block of the denoiser is the tap. Its output goes through a GroupNorm and one convolution, which is fitted to
predict the noise from the channels of the first group alone: those are used, and all others are not, exactly.
"""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from diffprobe.config.compose import load_run
from diffprobe.core.digest import digest_file
from diffprobe.core.result import RESULT_FILE, read_result, write_result
from diffprobe.probes.sae import KSAE
from diffprobe.probes.serialization import TENSORS
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import train
from diffprobe.shards.index import build_index
from diffprobe.shards.writer import write_shard

TAP, T = "up_blocks.2", 900
USED, UNUSED, SILENT = 0, 1, 2
"""Latents: along a used channel, along an unused one, and one that never fires."""
N_LATENTS = 3
CELL = f"{TAP}@t{T}"


def planted_model(folder: Path, source: Path) -> Path:
    """Write a copy of a tiny pipeline whose last convolution reads the first group of channels alone."""
    import shutil

    from diffusers import UNet2DConditionModel

    shutil.copytree(source, folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    generator = torch.Generator().manual_seed(0)
    side = unet.config.sample_size
    noise, clean = torch.randn(2, 48, 4, side, side, generator=generator)
    kept: list[torch.Tensor] = []
    handle = unet.conv_act.register_forward_hook(lambda module, args, output: kept.append(output))
    text = torch.zeros(48, 4, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(noise + 0.2 * clean, torch.full((48,), T), text)
        handle.remove()
        group = used_channels(unet)
        x = kept[0][:, group].movedim(1, -1).flatten(0, 2).double()
        x = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        weight = torch.linalg.lstsq(x, noise.movedim(1, -1).flatten(0, 2).double()).solution.float()
        unet.conv_out.weight.zero_()
        unet.conv_out.weight[:, group, 1, 1] = weight[:-1].T
        unet.conv_out.bias.copy_(weight[-1])
    unet.save_pretrained(folder / "unet")
    return folder


def used_channels(unet: torch.nn.Module) -> list[int]:
    """The channels of the first group of the last normalisation."""
    norm = unet.conv_norm_out
    return list(range(norm.num_channels // norm.num_groups))


def planted_shards(folder: Path, n_train: int = 24, n_test: int = 24) -> Path:
    """Pictures of noise around a grey that is their attribute `shade`; families of two are groups."""
    folder.mkdir(parents=True)
    for split, n in (("train", n_train), ("val", 4), ("test", n_test)):
        write_shard(folder / f"{split}-0000.tar", list(_pictures(split, n)))
    build_index(folder, name="planted", licence="CC0-1.0")
    return folder


def _pictures(split: str, n: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    generator = torch.Generator().manual_seed(len(split))
    for i in range(n):
        shade = ("dark", "light")[i % 2]
        pixels = 60 + 120 * (i % 2) + torch.randint(0, 60, (32, 32, 3), generator=generator)
        buffer = io.BytesIO()
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "PNG")
        record = {
            "label": i % 2, "class_name": shade, "caption": f"a {shade} picture",
            "attributes": {"shade": shade, "family": f"{split}-{i // 2}"},
        }  # fmt: skip
        yield f"planted/{split}-{i:03d}", {"png": buffer.getvalue(), "json": json.dumps(record).encode()}


def planted_use_run(root: Path, source: Path) -> Path:
    """Return the folder of a run whose autoencoder has the latents `USED`, `UNUSED` and `SILENT`."""
    model, shards = planted_model(root / "model", source), planted_shards(root / "shards")
    config = load_run(
        None,
        [
            "probe=topk", f"probe.cell={CELL}", "probe.params.k=2", f"probe.params.n_latents={N_LATENTS}",
            f"backbone.path={model}", "backbone.device=cpu", f"data.path={shards}", "data.batch_size=8",
            "data.num_workers=0", f"features.taps=[{TAP}]", f"features.timesteps=[{T}]", "features.pool=none",
            f"features.store={root / 'stores'}", "trainer.max_epochs=1", "trainer.enable_progress_bar=false",
            "logger=none", f"output={root / 'runs'}",
        ],
    )  # fmt: skip
    extract_run(config, progress=False)
    run = train(config).parent
    (name,) = (name for name in read_result(run / RESULT_FILE).artifacts if name.startswith("probes/"))
    sae = KSAE.from_pretrained(run / name)
    with torch.no_grad():
        sae.W_dec.zero_()
        for latent, channel in ((USED, 0), (UNUSED, sae.d_in - 1), (SILENT, 1)):
            sae.W_dec[latent, channel] = 1
        sae.W_enc.copy_(sae.W_dec)
        sae.b_enc.zero_()
        sae.b_enc[SILENT] = -1e6
        sae.b_pre.zero_()
    sae.save_pretrained(run / name, cell=f"{CELL}:empty:none")
    result = read_result(run / RESULT_FILE)
    artifacts = {**result.artifacts, name: digest_file(run / name / TENSORS)}
    write_result(dataclasses.replace(result, artifacts=artifacts), run / RESULT_FILE)
    return run
