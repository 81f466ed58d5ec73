"""Predictions per sample, kept beside a result: `predictions-<split>.safetensors`, from which metrics are made anew.

One file per split, samples in the order of their keys. Tensors, with n samples:

- `keys` uint8 and `key_ends` int64 [n]: the UTF-8 bytes of all keys, and where each ends.
- `ids` int32 [n, columns]: the label and all attributes, -1 where a sample has none.
- of classifier i: `predicted.i` [n], the class of the largest logit in 32 bits, and `scores.i` float16, natural
  log-probabilities: of all classes up to `FULL_CLASSES`, else of the `KEPT_CLASSES` most likely ones, whose ids are in
  `top.i`, and of the true class in `own.i`. So a classifier takes at most 74 bytes per sample.
- of direction i: `scores.i`, the coordinate of each sample along it, float32; of a control its draws [n, draws],
  standardised over the split (an order is all that an area needs) in float16.
- of autoencoder i: `n_rows.i`, `residual.i` (sum of |x - x_hat|^2 over the rows of a sample), `square.i` (sum of
  |x - c|^2 about the pre-bias c) and `active.i` (active latents), 16 bytes per sample.

The header names heads, columns and their values, and the group of the data set. A log-probability below -65,504, the
least float16, is kept as that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.config.parse import parse, to_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import canonical_json
from diffprobe.core.errors import ConfigError, RunFailed, SchemaError
from diffprobe.core.json_file import expect, parse_json
from diffprobe.core.safetensors_file import open_safetensors
from diffprobe.probes.serialization import save_tensors

KIND, SCHEMA_VERSION = "predictions", 1
FULL_CLASSES = 32
"""Largest number of classes of which all scores are kept."""
KEPT_CLASSES = 16
"""Number of the most likely classes whose scores are kept where there are more."""
LABEL = "label"
"""Column of `ids` that is the label of a sample; the others are attributes."""
LEAST_SCORE = -65504.0
"""Least log-probability that float16 has."""
_HEADER = "diffprobe"
_FIX = "train the run again: diffprobe train"
_KEY_ERRORS = "surrogateescape"
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name of a tensor -> its type, and its shape for one sample."""


@dataclass(frozen=True, kw_only=True)
class KeptHead:
    """What one head of a run predicts."""

    kind: Literal["classes", "axis", "rows"]
    """A classifier, a direction, or an autoencoder."""
    probe: str
    """The name of the probe."""
    cell: str | None
    """The cell that it reads; None for all cells of an autoencoder."""
    target: str | None = None
    """A column of `ids`; None for an autoencoder."""
    control: str = "none"
    """Control that it is, for example "shuffled_labels"; "none" for the probe itself."""
    draws: int = 1
    """Of a direction: how many columns of scores."""
    positive: str = ""
    """Of a direction: name of the end with large scores."""
    negative: str = ""
    """Of a direction: name of the other end."""
    positive_ids: tuple[int, ...] = ()
    """Of a direction: values of the target at the positive end."""
    negative_ids: tuple[int, ...] = ()
    """Of a direction: values of the target at the negative end; samples with other values are at neither."""
    shift: float = 0.0
    """Of an autoencoder: sum over the split's rows of |mean - c|^2, by which `square` exceeds the centred one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions of all heads of a run on one split.

    Attributes:
        split: "val" or "test".
        keys: key of each sample, ascending.
        values: column -> names of its values; the columns of `ids`, in their order.
        heads: the heads.
        tensors: the tensors of the file without the keys.
        group: the column whose samples are not independent, as the data set names it; None if it names none.
    """

    split: str
    keys: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    heads: tuple[KeptHead, ...]
    tensors: dict[str, Tensor]
    group: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> Int[Tensor, " samples"]:
        """Return the ids of the label or of an attribute, -1 where a sample has none."""
        return self.tensors["ids"][:, list(self.values).index(name)].long()

    def truth(self, head: int) -> Int[Tensor, " samples"]:
        """Return what a head should predict: class ids, or of a direction 1 and 0; -1 where a sample has neither.

        Of an autoencoder, 0 for each sample.
        """
        info = self.heads[head]
        if info.target is None:
            return torch.zeros(len(self), dtype=torch.int64)
        ids = self.column(info.target)
        if info.kind == "classes":
            return ids
        side = torch.full_like(ids, -1)
        side[torch.isin(ids, torch.tensor(info.negative_ids))] = 0
        side[torch.isin(ids, torch.tensor(info.positive_ids))] = 1
        return side

    def of(self, name: str, head: int) -> Tensor:
        """Return a tensor of a head: "scores", "predicted", ..."""
        return self.tensors[f"{name}.{head}"]

    def has(self, name: str, head: int) -> bool:
        """Return whether a head has a tensor: "top" and "own" where only the most likely classes are kept."""
        return f"{name}.{head}" in self.tensors


def layout_of(heads: Sequence[KeptHead], values: Mapping[str, Sequence[str]]) -> Layout:
    """Return the tensors of a file but for the keys."""
    found: Layout = {"ids": (torch.int32, (len(values),))}
    for i, head in enumerate(heads):
        if head.kind == "rows":
            own: Layout = {
                "n_rows": (torch.int32, ()), "residual": (torch.float32, ()), "square": (torch.float32, ()),
                "active": (torch.int32, ()),
            }  # fmt: skip
        elif head.kind == "axis":
            control = head.control != "none"
            own = {"scores": (torch.float16, (head.draws,)) if control else (torch.float32, ())}
        else:
            n = len(values[head.target or LABEL])
            ids = torch.int16 if n <= torch.iinfo(torch.int16).max else torch.int32
            own = {"predicted": (ids, ()), "scores": (torch.float16, (n if n <= FULL_CLASSES else KEPT_CLASSES,))}
            if n > FULL_CLASSES:
                own |= {"top": (ids, (KEPT_CLASSES,)), "own": (torch.float16, ())}
        found |= {f"{name}.{i}": spec for name, spec in own.items()}
    return found


def class_scores(logits: Tensor, truth: Int[Tensor, " samples"]) -> dict[str, Tensor]:
    """Return what is kept of a classifier's logits (samples, classes): predicted class and log-probabilities.

    Args:
        truth: the true classes; -1 for none, which gets the score 0 in "own".
    """
    scores = logits.float().log_softmax(1).clamp(min=LEAST_SCORE)
    kept = {"predicted": logits.argmax(1), "scores": scores}
    if scores.shape[1] > FULL_CLASSES:
        kept["scores"], kept["top"] = scores.topk(KEPT_CLASSES, dim=1)
        own = scores.gather(1, truth.clamp(min=0)[:, None])[:, 0]
        kept["own"] = torch.where(truth >= 0, own, torch.zeros_like(own))
    return kept


def save_predictions(predictions: Predictions, path: Path | str) -> None:
    """Write predictions atomically; equal predictions give equal bytes.

    Raises: RunFailed for a key that occurs twice; OSError, for example on a full disk.
    """
    keys = predictions.keys
    twice = next((a for a, b in zip(keys, keys[1:], strict=False) if a == b), None)
    if twice is not None:
        raise RunFailed(f"split '{predictions.split}' gave sample '{twice}' twice; keys must be unique in a shard set.")
    encoded = [key.encode("utf-8", _KEY_ERRORS) for key in keys]
    ends = torch.tensor([len(key) for key in encoded], dtype=torch.int64).cumsum(0)
    joined = bytearray(b"".join(encoded))
    text = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
    layout = layout_of(predictions.heads, predictions.values)
    tensors = {name: predictions.tensors[name].to(dtype) for name, (dtype, _) in layout.items()}
    header = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "split": predictions.split,
        "columns": [[name, list(values)] for name, values in predictions.values.items()],
        "heads": [to_tree(asdict(head)) for head in predictions.heads],
        **({} if predictions.group is None else {"group": predictions.group}),
    }
    with atomic_file(path) as temporary:
        metadata = {_HEADER: canonical_json(header)}  # one entry: the library writes several in any order
        save_tensors({"keys": text, "key_ends": ends, **tensors}, temporary, metadata=metadata)


def load_predictions(path: Path | str) -> Predictions:
    """Read predictions.

    Raises: FileNotFoundError; SchemaError, naming the file and what is wrong, for another kind or version, and for
        tensors that do not fit the header: another type or shape, an id out of range, a score that is not finite, keys
        that are not text in ascending order.
    """
    path = Path(path)
    with open_safetensors(path, fix=_FIX) as stored:
        header = _header(path, stored.metadata())
        split = expect(header.get("split"), str, where=f"'{path}', split", fix=_FIX)
        values = _columns(path, header.get("columns"))
        heads = _heads(path, header.get("heads"), values)
        group = header.get("group")
        if group is not None and (not isinstance(group, str) or group not in values):
            raise _bad(path, f"its group {str(group)[:80]!r} is not one of its columns")
        names = set(stored.keys())
        wanted = {"keys", "key_ends", *layout_of(heads, values)}
        if names != wanted:
            missing, more = sorted(wanted - names)[:5], sorted(names - wanted)[:5]
            raise _bad(
                path, f"missing tensors: {', '.join(missing) or 'none'}; unexpected: {', '.join(more) or 'none'}"
            )
        tensors = {name: stored.get_tensor(name) for name in sorted(names)}
    keys = _keys(path, tensors.pop("keys"), tensors.pop("key_ends"))
    for name, (dtype, shape) in layout_of(heads, values).items():
        found = tensors[name]
        if found.dtype != dtype or tuple(found.shape) != (len(keys), *shape):
            expected = f"{dtype} {[len(keys), *shape]}".removeprefix("torch.")
            raise _bad(path, f"tensor '{name}' is {found.dtype} {list(found.shape)}, expected {expected}")
        if found.is_floating_point() and not torch.isfinite(found).all():
            raise _bad(path, f"tensor '{name}' has NaN or infinity")
    _check_ranges(path, values, heads, tensors)
    return Predictions(split=split, keys=keys, values=values, heads=heads, tensors=tensors, group=group)


def _bad(path: Path, what: str) -> SchemaError:
    return SchemaError(f"'{path}' has no readable predictions: {what}.", fix=_FIX)


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_HEADER)
    if text is None:
        raise SchemaError(f"'{path}' is not a file of predictions: its header has no '{_HEADER}'.", fix=_FIX)
    where = f"'{path}', header"
    header: dict[str, Any] = expect(parse_json(text, where=where, fix=_FIX), dict, where=where, fix=_FIX)
    for name, wanted in (("kind", KIND), ("schema_version", SCHEMA_VERSION)):
        found = header.get(name)
        if found != wanted or isinstance(found, bool):
            raise SchemaError(f"'{path}' has {name} {str(found)[:80]!r}, expected {wanted!r}.", fix=_FIX)
    return header


def _columns(path: Path, tree: object) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for entry in expect(tree, list, where=f"'{path}', columns", fix=_FIX):
        ok = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list)
        if not ok or entry[0] in found or not all(isinstance(name, str) for name in entry[1]):
            raise _bad(path, "a column of its header is not a new name with a list of texts")
        found[entry[0]] = tuple(entry[1])
    if LABEL not in found:
        raise _bad(path, f"its header has no column '{LABEL}'")
    return found


def _heads(path: Path, tree: object, values: Mapping[str, Sequence[str]]) -> tuple[KeptHead, ...]:
    heads = []
    for i, entry in enumerate(expect(tree, list, where=f"'{path}', heads", fix=_FIX)):
        try:
            head = parse(KeptHead, expect(entry, dict, where=f"'{path}', heads[{i}]", fix=_FIX))
        except ConfigError as error:
            raise SchemaError(f"'{path}', heads[{i}]: {error.what}", *error.details, fix=_FIX) from error
        if (head.target is None) != (head.kind == "rows") or (head.target is not None and head.target not in values):
            raise _bad(path, f"heads[{i}] has the target {head.target!r}; columns are {', '.join(values)}")
        n = len(values[head.target]) if head.target is not None else 0
        ends = (*head.positive_ids, *head.negative_ids)
        if head.draws < 1 or not all(0 <= end < n for end in ends) or len(set(ends)) < len(ends):
            raise _bad(path, f"heads[{i}] has draws={head.draws} and ends {str(ends)[:80]} of {n} values")
        heads.append(head)
    return tuple(heads)


def _keys(path: Path, text: Tensor, ends: Tensor) -> tuple[str, ...]:
    if text.dtype != torch.uint8 or text.ndim != 1 or ends.dtype != torch.int64 or ends.ndim != 1:
        raise _bad(path, "its keys are not bytes with ends")
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    if any(stop < start for start, stop in zip(starts, stops, strict=bool(stops))) or (stops or [0])[-1] != len(text):
        raise _bad(path, f"the ends of its keys do not divide {len(text)} bytes")
    whole = text.numpy().tobytes()
    keys = tuple(whole[a:b].decode("utf-8", _KEY_ERRORS) for a, b in zip(starts, stops, strict=bool(stops)))
    if any(b <= a for a, b in zip(keys, keys[1:], strict=False)):
        raise _bad(path, "its keys are not in ascending order, each once")
    return keys


def _check_ranges(
    path: Path, values: Mapping[str, Sequence[str]], heads: Sequence[KeptHead], tensors: Mapping[str, Tensor]
) -> None:
    limits = [("ids", tensors["ids"][:, i], -1, len(names)) for i, names in enumerate(values.values())]
    for i, head in enumerate(heads):
        if head.kind == "classes" and head.target is not None:
            names = [name for name in (f"predicted.{i}", f"top.{i}") if name in tensors]
            limits += [(name, tensors[name], 0, len(values[head.target])) for name in names]
        elif head.kind == "rows":
            names = [f"{name}.{i}" for name in ("n_rows", "residual", "square", "active")]
            limits += [(name, tensors[name], 0, 2**31) for name in names if not tensors[name].is_floating_point()]
            limits += [(name, tensors[name] < 0, 0, 1) for name in names if tensors[name].is_floating_point()]
    for name, found, low, high in limits:
        if found.numel() and (int(found.min()) < low or int(found.max()) >= high):
            raise _bad(path, f"tensor '{name}' has a value outside {low}..{high - 1}")
