"""The file of predictions: what is written is read, equal content gives equal bytes, a foreign file a plain error."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.probes.predictions import (
    FULL_CLASSES,
    KeptHead,
    Predictions,
    class_scores,
    load_predictions,
    save_predictions,
)

MANY = tuple(f"class {i}" for i in range(40))
VALUES = {"label": MANY, "style": ("noto", "twemoji", "other")}
HEADS = (
    KeptHead(kind="classes", probe="linear", cell="mid", target="label"),
    KeptHead(kind="classes", probe="linear", cell="mid", target="style", control="shuffled_labels"),
    KeptHead(
        kind="axis", probe="ridge", cell="mid", target="style", control="random_direction", draws=4, positive="noto",
        negative="twemoji", positive_ids=(0,), negative_ids=(1,),
    ),
    KeptHead(kind="rows", probe="topk", cell=None, shift=0.25),
)  # fmt: skip


def make(n=12):
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(-1, 40, (n,), generator=generator), torch.arange(n) % 4 - 1], dim=1)
    many = class_scores(torch.randn(n, 40, generator=generator), ids[:, 0])
    few = class_scores(torch.randn(n, 3, generator=generator), ids[:, 1])
    tensors = {"ids": ids, "scores.2": torch.randn(n, 4, generator=generator), "n_rows.3": torch.ones(n)}
    tensors |= {f"{name}.0": found for name, found in many.items()} | {f"{name}.1": f for name, f in few.items()}
    tensors |= {"residual.3": torch.ones(n) / 3, "square.3": torch.ones(n), "active.3": torch.ones(n)}
    keys = tuple(sorted(f"família/{i}\n\x1b[2J" for i in range(n)))
    return Predictions(split="test", keys=keys, values=VALUES, heads=HEADS, tensors=tensors)


def test_what_is_written_is_read_and_is_compact(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    made = make()
    save_predictions(made, one)
    save_predictions(make(), two)
    assert one.read_bytes() == two.read_bytes() and len(list(tmp_path.iterdir())) == 2
    found = load_predictions(one)
    assert (found.split, found.keys, found.values, found.heads) == ("test", made.keys, VALUES, HEADS)
    assert found.group is None
    save_predictions(dataclasses.replace(made, group="style"), two)
    assert load_predictions(two).group == "style"
    assert found.column("style").equal(made.tensors["ids"][:, 1]) and len(found) == 12
    assert found.truth(2).tolist() == [-1, 1, 0, -1] * 3  # of noto, twemoji, other and none
    assert found.of("top", 0).shape == (12, 16) and found.has("own", 0) and not found.has("own", 1)
    own = found.of("own", 0)[found.truth(0) < 0]
    assert (own == 0).all()
    per_sample = sum(t[0].numel() * t.element_size() for name, t in found.tensors.items() if name.endswith(".0"))
    assert per_sample <= 74 and FULL_CLASSES * 2 + 2 <= 74


def test_no_sample_at_all(tmp_path):
    whole = make()
    tensors = {name: tensor[:0] for name, tensor in whole.tensors.items()}
    save_predictions(dataclasses.replace(whole, keys=(), tensors=tensors), tmp_path / "none.safetensors")
    assert load_predictions(tmp_path / "none.safetensors").keys == ()


def test_scores_are_those_of_the_logits_and_stay_finite():
    kept = class_scores(torch.tensor([[0.0, 1e30], [2.0, 2.0]]), torch.tensor([0, -1]))
    assert kept["predicted"].tolist() == [1, 0] and kept["scores"][0].tolist() == [-65504.0, 0.0]
    assert torch.isfinite(kept["scores"].half()).all()


def test_a_sample_that_came_twice_is_refused(tmp_path):
    twice = dataclasses.replace(make(2), keys=("same", "same"))
    with pytest.raises(RunFailed, match="'same' twice"):
        save_predictions(twice, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


FAULTS = {
    "no header": (lambda t, h: (t, None), "header has no 'diffprobe'"),
    "another kind": (lambda t, h: (t, {**h, "kind": "probe"}), "kind 'probe'"),
    "a later version": (lambda t, h: (t, {**h, "schema_version": 2}), "schema_version '?2"),
    "no columns": (lambda t, h: (t, {**h, "columns": [["style", []]]}), "no column 'label'"),
    "a group that is no column": (lambda t, h: (t, {**h, "group": "base"}), "group 'base'"),
    "columns twice": (lambda t, h: (t, {**h, "columns": [*h["columns"], ["label", []]]}), "column"),
    "a target that is none": (lambda t, h: (t, {**h, "heads": [{**h["heads"][0], "target": "x"}]}), r"'x'.*label"),
    "an unknown key": (lambda t, h: (t, {**h, "heads": [{**h["heads"][0], "x": 1}]}), r"heads\[0\]"),
    "ends outside": (
        lambda t, h: (t, {**h, "heads": [*h["heads"][:2], {**h["heads"][2], "positive_ids": [7]}, h["heads"][3]]}),
        r"heads\[2\].*7",
    ),
    "a missing tensor": (lambda t, h: ({k: v for k, v in t.items() if k != "top.0"}, h), "missing tensors: top.0"),
    "one more": (lambda t, h: ({**t, "more": torch.zeros(1)}, h), "unexpected: more"),
    "another type": (lambda t, h: ({**t, "scores.0": t["scores.0"].float()}, h), "'scores.0' is torch.float32"),
    "too few samples": (lambda t, h: ({**t, "predicted.0": t["predicted.0"][:3]}, h), r"'predicted.0'.*\[3\].*12"),
    "a class out of range": (lambda t, h: ({**t, "predicted.0": t["predicted.0"] + 90}, h), r"'predicted.0'.*0..39"),
    "an id out of range": (lambda t, h: ({**t, "ids": t["ids"] - 5}, h), r"'ids'.*-1"),
    "rows below zero": (lambda t, h: ({**t, "residual.3": -t["residual.3"]}, h), "'residual.3'"),
    "NaN": (lambda t, h: ({**t, "scores.2": t["scores.2"] * float("nan")}, h), "'scores.2' has NaN"),
    "ends of keys": (lambda t, h: ({**t, "key_ends": t["key_ends"].flip(0)}, h), "ends of its keys"),
    "keys out of order": (lambda t, h: ({**t, "keys": torch.zeros_like(t["keys"])}, h), "ascending"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused(tmp_path, fault):
    path = tmp_path / "p.safetensors"
    save_predictions(make(), path)
    change, message = FAULTS[fault]
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(json.loads(file.read(size))["__metadata__"]["diffprobe"])
    tensors, header = change(load_file(path), header)
    save_file(tensors, path, metadata=None if header is None else {"diffprobe": json.dumps(header)})
    with pytest.raises(SchemaError, match=message) as error:
        load_predictions(path)
    assert "p.safetensors" in str(error.value) and "diffprobe train" in str(error.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_predictions(make(), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SchemaError, match="p.safetensors"):
        load_predictions(path)
