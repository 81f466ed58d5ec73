"""`store verify` finds every kind of damage, names the file, and is silent about a sound store."""

import json
import struct

import pytest

from diffprobe.core.artifact import write_artifact
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import SchemaError, StoreIncomplete
from diffprobe.features.verify import verify_folder
from diffprobe.features.writer import SAMPLES

CELL, FILE = "mid_block@t10:empty:mean", "mid_block@t10.empty.mean.safetensors"


@pytest.fixture
def store(tmp_path, manifest, fill):
    return fill(tmp_path, manifest)


def reseal(store, shard, change):
    """Change a `samples.json` and seal it again, as someone who knows the format could."""
    path = store.path / shard / "samples.json"
    value = json.loads(path.read_text())
    header = value.pop("header")
    change(value)
    write_artifact(path, value, kind=header["kind"], schema_version=header["schema_version"], inputs=header["inputs"])


def test_a_sound_store_has_no_faults_even_while_others_write(store):
    (store.path / ".writing-elsewhere-7-train-0000.tar").mkdir()
    assert store.verify() == verify_folder(store.path) == []


@pytest.mark.parametrize("cell", range(2))
@pytest.mark.parametrize("place", [0, 12, -1])
def test_one_flipped_byte(store, cell, place):
    path = sorted((store.path / "train-0001.tar").glob("*.safetensors"))[cell]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (fault,) = verify_folder(store.path)
    assert fault.startswith(f"train-0001.tar/{path.name}:") and "checksum" in fault


def test_a_changed_caption_and_a_missing_file(store):
    samples = store.path / "val-0000.tar" / "samples.json"
    samples.write_text(samples.read_text().replace("caption 3", "caption 4", 1))
    (store.path / "train-0000.tar" / FILE).unlink()
    faults = verify_folder(store.path)
    assert len(faults) == 2
    assert f"train-0000.tar/{FILE}: missing" in faults
    assert any("val-0000.tar/samples.json" in fault and "modified" in fault for fault in faults)


def test_a_missing_samples_file(store):
    (store.path / "train-0001.tar" / "samples.json").unlink()
    (fault,) = verify_folder(store.path)
    assert fault.startswith("train-0001.tar/samples.json:")


def test_a_truncated_file(store):
    path = store.path / "val-0000.tar" / FILE
    path.write_bytes(path.read_bytes()[:-5])
    (fault,) = verify_folder(store.path)
    assert f"val-0000.tar/{FILE}" in fault


def test_extra_rows_that_were_sealed_again(store):
    """The checksums are right, and still the rows are not those of the keys."""
    path = store.path / "val-0000.tar" / FILE
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["features"].update(shape=[6, 3], data_offsets=[0, 72])
    path.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + data[8 + length :])
    path.write_bytes(path.read_bytes() + bytes(12))

    def change(value):
        value["cells"][CELL].update(sha256=digest_file(path), shape=[6, 3])

    reseal(store, "val-0000.tar", change)
    (fault,) = verify_folder(store.path)
    assert fault.startswith(f"val-0000.tar/{SAMPLES}: ") and "[6, 3] for 5 keys" in fault


def test_samples_that_were_dropped_and_sealed_again(store):
    reseal(store, "val-0000.tar", lambda value: value["keys"].pop())
    faults = "\n".join(verify_folder(store.path))
    assert "4 samples and 0 left out, 5 in the manifest" in faults
    assert "'label' has 5 values for 4 keys" in faults and "5 rows for 4 keys" in faults


def test_an_edited_manifest(store):
    path = store.path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    (fault,) = verify_folder(store.path)
    assert fault.startswith("manifest.json:") and "modified" in fault
    path.write_text("{}")
    assert verify_folder(store.path)[0].startswith("manifest.json:")


def test_a_manifest_of_other_settings_sealed_again_fits_neither_folder_nor_shards(store, changed_manifest):
    changed_manifest(dtype="float16").write(store.path / "manifest.json")
    faults = verify_folder(store.path)
    assert "the folder is named" in faults[0]
    assert sum("belongs to another store" in fault for fault in faults) == 3


def test_foreign_files_and_folders(store):
    (store.path / "notes.txt").write_text("mine")
    (store.path / "test-0000.tar").mkdir()
    (store.path / "val-0000.tar" / "extra.safetensors").write_bytes(b"")
    assert verify_folder(store.path) == [
        "val-0000.tar/extra.safetensors: not part of the store",
        "notes.txt: not part of the store",
        "test-0000.tar: not part of the store",
    ]


def test_a_renamed_store_and_a_missing_shard(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest, process=(0, 2))
    assert verify_folder(store.path.rename(tmp_path / "mine")) == [
        f"the folder is named mine, expected {manifest.folder} by its digest",
        "train-0001.tar: not written yet",
    ]


def test_latents_that_were_not_needed_yet_are_no_fault(tmp_path, latent_manifest, fill):
    store = fill(tmp_path, latent_manifest, process=(0, 2))
    assert verify_folder(store.path) == []
    path = store.path / "val-0000.tar" / "vae_latents.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    (fault,) = verify_folder(store.path)
    assert "val-0000.tar/vae_latents.safetensors" in fault


def test_a_folder_without_manifest_is_not_a_store(tmp_path):
    with pytest.raises(StoreIncomplete, match="no manifest"):
        verify_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(keys=["a"] * len(value["keys"])), "duplicate key"),
        (lambda value: value["left_out"].append({"key": "a", "message": "b"}), "1 left out, . in the manifest"),
        (lambda value: next(iter(value["cells"].values())).update(shape=[10**9, 3]), r"shape \[1000000000, 3\]"),
    ],
)
def test_what_verification_finds_is_not_read_either(store, change, message):
    shard = store.manifest.shards[0]
    reseal(store, shard.file, change)
    assert len(verify_folder(store.path)) == 1
    with pytest.raises(SchemaError, match=f"{shard.file}/samples.json' is not complete.*{message}"):
        store.samples(shard)


def test_every_feature_file_advances_the_bar(store):
    from contextlib import contextmanager
    from types import SimpleNamespace

    totals, done = [], []

    @contextmanager
    def make_bar(total):
        totals.append(total)
        yield SimpleNamespace(update=done.append)

    assert verify_folder(store.path, make_bar=make_bar) == []
    assert totals == [sum(done)] == [len(list(store.path.glob("*/*.safetensors")))] and sum(done) > 1
