"""Saved autoencoders are recognised by their files, whichever library wrote them."""

from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import SchemaError
from diffprobe.probes.sae.convert import to_dictionary_learning, to_saelens
from diffprobe.probes.sae.open_folder import is_autoencoder, open_autoencoder
from diffprobe.probes.sae.topk import Config, make


def test_all_formats_give_the_same_reconstruction(tmp_path: Path) -> None:
    sae, x = make(Config(k=3, n_latents=12), 6, seed=0), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    sae.initialise(torch.ones(6), torch.full((6,), 2.0))
    folders = [
        sae.save_pretrained(tmp_path / "own", cell="mid_block@t1:empty:mean"), to_saelens(sae, tmp_path / "saelens"),
        to_dictionary_learning(sae, tmp_path / "learning"),
    ]  # fmt: skip
    opened = [open_autoencoder(folder) for folder in folders]
    assert all(is_autoencoder(folder) for folder in folders)
    assert [cell for _, cell in opened] == ["mid_block@t1:empty:mean", None, None]
    for found, _ in opened:
        torch.testing.assert_close(found(x)[0], sae(x)[0])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    assert not is_autoencoder(tmp_path) and not is_autoencoder(tmp_path / "absent")
    with pytest.raises(SchemaError, match="sae_weights.safetensors"):
        open_autoencoder(tmp_path)
