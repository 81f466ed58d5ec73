"""Dictionaries and rows that are kept: read again with the same settings, made anew with others or after a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.benchmarks.kept_dictionaries import Kept
from diffprobe.benchmarks.timed_dictionaries import Trained
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.topk import Config, make
from diffprobe.report.leaderboard_table import DictionaryRow, FactorCell, Number

SETTINGS: dict[str, Any] = {"seed": 3, "cell": "mid_block@t5", "by": "Adam, betas 0.9 and 0.95"}


def trained(seed: int) -> Trained:
    return Trained(make(Config(k=2, n_latents=8), 6, seed=seed), steps=10 + seed, seconds=0.5)


def never() -> Any:
    raise AssertionError("made again")


def test_a_dictionary_is_read_again_until_a_setting_differs(tmp_path: Path) -> None:
    keep = Kept(tmp_path)
    first = keep.trained("TopK, new", SETTINGS, lambda: trained(1))
    again = keep.trained("TopK, new", SETTINGS, never)
    assert torch.equal(first.sae.W_dec, again.sae.W_dec) and again[1:] == (11, 0.5)
    assert (tmp_path / "topk-new" / "seed3" / "training.json").is_file()
    other = keep.trained("TopK, new", {**SETTINGS, "by": "Adam, betas 0.9 and 0.999"}, lambda: trained(2))
    assert other.steps == 12 and not torch.equal(other.sae.W_dec, first.sae.W_dec)


def test_a_dictionary_that_was_being_replaced_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Kept(tmp_path)
    keep.trained("TopK", SETTINGS, lambda: trained(1))
    other, save = {**SETTINGS, "by": "another"}, KSAE.save_pretrained

    def stopped(self: KSAE, *args: Any, **given: Any) -> Path:
        save(self, *args, **given)
        raise KeyboardInterrupt

    monkeypatch.setattr(KSAE, "save_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        keep.trained("TopK", other, lambda: trained(2))
    monkeypatch.undo()
    assert keep.trained("TopK", SETTINGS, lambda: trained(1)).steps == 11  # not the weights of the other settings
    assert torch.equal(keep.trained("TopK", SETTINGS, never).sae.W_dec, trained(1).sae.W_dec)


def test_a_row_is_read_again_until_a_setting_differs(tmp_path: Path) -> None:
    number = Number(value=0.1 + 0.2, low=0.1, high=1e-17, seeds=(1 / 3, 0.5))
    cell = FactorCell(factor="size", auroc=number, q=(0.01,), n_seeds=1, has_latent=True, n_values=3,
                      n_values_with_latent=2, pointing=number, pointing_null=0.2)  # fmt: skip
    row = DictionaryRow(name="TopK", kind="ours", n_latents=8, active=2.0, auroc=number, absorption=number,
                        factors=(cell,), steps=(4, 5), seconds=1.5)  # fmt: skip
    keep = Kept(tmp_path)
    assert keep.row("TopK", SETTINGS, lambda: row) == row == keep.row("TopK", SETTINGS, never)
    with pytest.raises(AssertionError, match="made again"):
        keep.row("TopK", {**SETTINGS, "n_permutations": 9}, never)
