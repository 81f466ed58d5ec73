"""Draws are made once per edit, strengths and identity; a damaged file is named."""

import pytest
import torch
from safetensors.torch import save_file

from diffprobe.core.errors import SchemaError
from diffprobe.evaluation.kept_draws import KeptDraws

EDIT = "digest of an edit"


class Drawing:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {-1.0: torch.full((2, 3), 7.0), 0.0: torch.arange(6.0).view(2, 3).T.contiguous().T}


def test_an_edit_is_drawn_once(tmp_path):
    draw, kept = Drawing(), KeptDraws(tmp_path / "a", {"seed": 0})
    first = kept.get(EDIT, (-1.0, 0.0), draw)
    again = KeptDraws(tmp_path / "a", {"seed": 0}).get(EDIT, (-1.0, 0.0), draw)
    assert draw.calls == 1 and list(again) == [-1.0, 0.0]
    assert all(again[strength].equal(first[strength]) for strength in first)


def test_whatever_fixes_a_draw_is_in_the_name_of_its_file(tmp_path):
    kept = KeptDraws(tmp_path, {"seed": 0})
    paths = {kept.path(EDIT, (0.0,)), kept.path("another", (0.0,)), kept.path(EDIT, (0.0, 1.0)),
             KeptDraws(tmp_path, {"seed": 1}).path(EDIT, (0.0,))}  # fmt: skip
    assert len(paths) == 4 and kept.path(EDIT, (0.0,)) in paths


def test_an_interrupted_draw_leaves_no_file(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    kept = KeptDraws(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        kept.get(EDIT, (0.0,), interrupted)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path):
    kept, draw = KeptDraws(tmp_path, {}), Drawing()
    path = kept.path(EDIT, (-1.0, 0.0))
    path.write_bytes(b"not safetensors")
    with pytest.raises(SchemaError, match=r"damaged.*\n.*delete it"):
        kept.get(EDIT, (-1.0, 0.0), draw)
    save_file({"0000": torch.zeros(1)}, path)
    with pytest.raises(SchemaError, match="not one per strength"):
        kept.get(EDIT, (-1.0, 0.0), draw)
    assert draw.calls == 0
