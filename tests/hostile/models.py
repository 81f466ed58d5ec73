"""Hostile checkpoints, saved probes and autoencoders of other libraries: each case is one line of data.

A case damages a copy of a valid folder. `CASES` lists them; `test_hostile_models.py` runs them.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEM = "diffusion_pytorch_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
DEEP = b"[" * 100_000
Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        base: valid folder that is copied: `pipeline`, `probe`, `classifier`, `saelens` or `learning`.
        file: what is damaged, and what the message has to name; a path below the folder.
        what: the damage in words, for the test's name.
        damage: changes the file at a path.
        names: the texts that the message has to have; None for the file's own path.
    """

    base: str
    file: str
    what: str
    damage: Damage
    names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.base}-{self.file}-{self.what}".replace("/", ".")


def write(content: bytes | str) -> Damage:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def update(**changes: Any) -> Damage:
    """Change keys of a JSON object."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(target: str) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a safetensors file and leave its data."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        found = json.loads(content[8 : 8 + size])
        change(found)
        text = json.dumps(found).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return damage


def first(found: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in found.items() if key != "__metadata__")


def index(weight_map: object, file: str = "model.safetensors.index.json") -> Damage:
    """Put an index in place of the weights."""

    def damage(path: Path) -> None:
        path.unlink()
        (path.parent / file).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


JSON_DAMAGES: Mapping[str, Damage] = {
    "empty": write(""),
    "binary": write(bytes(range(256))),
    "deep": write(DEEP),
    "deep-object": write(b'{"a":' * 100_000),
    "list": write("[]"),
    "text": write('"x"'),
    "cut": cut(0.6),
    "lfs": write(LFS),
    "twice": lambda path: path.write_text(path.read_text().rstrip()[:-1] + ', "_class_name": 1, "_class_name": 2}'),
    "digits": lambda path: path.write_text(path.read_text().rstrip()[:-1] + f', "zzz": {"9" * 6000}}}'),
    "pipe": become_pipe,
    "folder": become_folder,
    "zeros": link("/dev/zero"),
    "loop": lambda path: link(path.name)(path),
    "huge": lambda path: os.truncate(path, 2**33),
    "lists": lambda path: path.write_text(path.read_text().rstrip()[:-1] + f', "zzz": [{"[]," * 2 * 10**6}[]]}}'),
}
TENSOR_DAMAGES: Mapping[str, Damage] = {
    "empty": write(b""),
    "cut": cut(0.5),
    "cut-header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "lfs": write(LFS),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "zip": write(b"PK\x03\x04" + bytes(100)),
    "header-size": lambda path: path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:]),
    "header-of-gigabytes": lambda path: (path.write_bytes(struct.pack("<Q", 2**32)), os.truncate(path, 2**33)),
    "header-deep": write(struct.pack("<Q", len(DEEP)) + DEEP),
    "shape": header(lambda found: first(found).update(shape=[3])),
    "shape-overflow": header(lambda found: first(found).update(shape=[2**62, 2**62])),
    "shape-negative": header(lambda found: first(found).update(shape=[-1])),
    "offsets": header(lambda found: first(found).update(data_offsets=[0, 2**40])),
    "offsets-reversed": header(lambda found: first(found).update(data_offsets=[64, 0])),
    "dtype": header(lambda found: first(found).update(dtype="F4096")),
    "dtype-text": header(lambda found: first(found).update(dtype=[])),
    "names": header(lambda found: found.update({"\x1b[2J" + key: found.pop(key) for key in list(found)})),
    "folder": become_folder,
}
CONFIG_CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"layers_per_block": 10**5}),
    ("unet", {"layers_per_block": [10**9, 1, 1]}),
    ("unet", {"transformer_layers_per_block": 10**9}),
    ("unet", {"down_block_types": ["DownBlock2D"] * 10**5}),
    ("unet", {"block_out_channels": [10**18, 32, 32]}),
    ("unet", {"block_out_channels": [16] * 30}),
    ("unet", {"norm_num_groups": 0}),
    ("unet", {"in_channels": -1}),
    ("unet", {"attention_head_dim": 0}),
    ("unet", {"cross_attention_dim": "32"}),
    ("unet", {"_class_name": ["UNet2DConditionModel", "x"]}),
    ("unet", {"auto_map": {"AutoModel": "payload.Model"}}),
    ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ("unet", {"_use_default_values": {"in_channels": 1}}),
    ("unet", {"mid_block_type": "os.system"}),
    ("unet", {"sample_size": 10**15}),
    ("vae", {"layers_per_block": 10**5}),
    ("vae", {"block_out_channels": [16] * 5000}),
    ("vae", {"block_out_channels": {}}),
    ("vae", {"latent_channels": 10**30}),
    ("vae", {"scaling_factor": "x"}),
    ("vae", {"_class_name": {"a": 1}}),
    ("vae", {"act_fn": "__import__"}),
    ("text_encoder", {"num_hidden_layers": 10**9}),
    ("text_encoder", {"num_hidden_layers": 10**4}),
    ("text_encoder", {"hidden_size": 10**12}),
    ("text_encoder", {"vocab_size": 10**15}),
    ("text_encoder", {"vocab_size": 2}),
    ("text_encoder", {"hidden_act": "nothing"}),
    ("text_encoder", {"num_attention_heads": 0}),
    ("text_encoder", {"auto_map": {"AutoModel": "payload.Model"}}),
    ("text_encoder", {"quantization_config": {"load_in_8bit": True}}),
    ("text_encoder", {"max_position_embeddings": 10**12}),
    ("scheduler", {"num_train_timesteps": 10**12}),
    ("scheduler", {"num_train_timesteps": -5}),
    ("scheduler", {"trained_betas": [0.1]}),
    ("scheduler", {"trained_betas": ["x"] * 1000}),
    ("scheduler", {"beta_schedule": {}}),
    ("scheduler", {"beta_start": "x"}),
    ("scheduler", {"beta_end": 1e30}),
    ("scheduler", {"prediction_type": []}),
    ("tokenizer", {"auto_map": {"AutoTokenizer": ["payload.Words", None]}}),
    ("tokenizer", {"model_max_length": -1}),
    ("tokenizer", {"model_max_length": 10**6}),
    ("tokenizer", {"model_max_length": "x"}),
    ("tokenizer", {"init_inputs": ["/etc/passwd"]}),
    ("tokenizer", {"extra_ids": 10**9}),
    ("tokenizer", {"added_tokens_decoder": {"x": {"content": 3}}}),
    ("tokenizer", {"pad_token": {"a": 1}}),
]
WEIGHT_MAPS: list[object] = [
    {"x": "payload.bin"}, {"x": "../unet/" + STEM}, {"x": "/etc/passwd"}, {"x": "/dev/zero"},
    {"x": "a\x00.safetensors"}, {"x": "missing.safetensors"}, {"x": "payload/../payload.bin"}, {"x": 3},
    {}, [], "model.safetensors",
]  # fmt: skip
SAE_CHANGES: list[dict[str, Any]] = [
    {"k": 10**12}, {"k": -1}, {"k": None}, {"architecture": {}}, {"architecture": "jumprelu"}, {"d_in": 10**12},
    {"activation_fn_kwargs": {"k": 99}}, {"normalize_activations": {"a": 1}}, {"apply_b_dec_to_input": []},
    {"rescale_acts_by_decoder_norm": "yes"},
]  # fmt: skip


def config_of(part: str) -> str:
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    return f"{part}/{names.get(part, 'config.json')}"


def cases() -> list[Case]:
    """List all cases."""
    found = []
    for file in ("model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        found += [Case("pipeline", file, what, damage) for what, damage in JSON_DAMAGES.items()]
    for file in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        chosen = ("empty", "deep", "list", "cut", "lfs", "twice", "pipe", "huge")
        found += [Case("pipeline", file, what, JSON_DAMAGES[what], ("tokenizer",)) for what in chosen]
    for file in (f"unet/{STEM}", f"vae/{STEM}", "text_encoder/model.safetensors"):
        part = (file.split("/")[0],)
        found += [Case("pipeline", file, what, damage, part) for what, damage in TENSOR_DAMAGES.items()]
    for part, changes in CONFIG_CHANGES:
        what = ",".join(f"{key}={str(value)[:20]}" for key, value in changes.items())
        found.append(
            Case(
                "pipeline",
                config_of(part),
                what,
                update(**changes),
                (part,) if "sample_size" not in changes else ("input",),
            )
        )
    for weight_map in WEIGHT_MAPS:
        what = f"index={str(weight_map)[:40]!r}"
        found.append(Case("pipeline", "text_encoder/model.safetensors", what, index(weight_map), ("text_encoder",)))
    for changes in SAE_CHANGES:
        what = ",".join(f"{key}={value}" for key, value in changes.items())
        found.append(Case("saelens", "cfg.json", what, update(**changes), ()))
    for base, settings, weights in (
        ("probe", "probe.json", "probe.safetensors"),
        ("classifier", "probe.json", "probe.safetensors"),
        ("saelens", "cfg.json", "sae_weights.safetensors"),
        ("learning", "config.json", "ae.pt"),
    ):
        chosen = ("empty", "binary", "deep", "list", "lfs", "twice", "pipe", "huge", "loop")
        found += [Case(base, settings, what, JSON_DAMAGES[what], (settings,)) for what in chosen]
        damages = TENSOR_DAMAGES if base == "saelens" else {"empty": write(b""), "cut": cut(0.5), "lfs": write(LFS)}
        found += [Case(base, weights, what, damage, (weights,)) for what, damage in damages.items()]
        found.append(Case(base, weights, "pipe", become_pipe, (weights,)))
    found.append(Case("learning", "ae.pt", "payload", lambda path: (path.parent / "payload.bin").replace(path)))
    return found


CASES = cases()
