import os

import pytest
import torch

from diffprobe.core.errors import SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.probes.serialization import SETTINGS, TENSORS, kind_of, load_probe, require_sizes, save_probe


def test_round_trip_and_refusals(tmp_path):
    save_probe(tmp_path, kind="probe/x", schema_version=1, settings={"a": 1}, tensors={"t": torch.arange(3)})
    settings, tensors = load_probe(tmp_path, kind="probe/x", schema_version=1)
    assert settings == {"a": 1} and tensors["t"].tolist() == [0, 1, 2]
    with pytest.raises(SchemaError, match="expected 'probe/y'"):
        load_probe(tmp_path, kind="probe/y", schema_version=1)
    with pytest.raises(SchemaError, match="schema version 1"):
        load_probe(tmp_path, kind="probe/x", schema_version=2)
    (tmp_path / "probe.safetensors").write_bytes(b"broken")
    with pytest.raises(SchemaError, match="not the file that was saved"):
        load_probe(tmp_path, kind="probe/x", schema_version=1)


def test_whoever_can_read_the_settings_can_read_the_tensors(tmp_path):
    save_probe(tmp_path, kind="probe/x", schema_version=1, settings={}, tensors={"W": torch.zeros(2)})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_folder_says_what_it_holds(tmp_path):
    with pytest.raises(WeightsMissing, match="no saved probe"):
        kind_of(tmp_path)
    save_probe(tmp_path, kind="probe/x", schema_version=1, settings={}, tensors={})
    assert kind_of(tmp_path) == "probe/x"
    for text in ("broken", "{}", "[]"):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(SchemaError, match=SETTINGS):
            kind_of(tmp_path)


def test_changed_settings_are_not_read(tmp_path):
    save_probe(tmp_path, kind="probe/x", schema_version=1, settings={"k": 1}, tensors={})
    path = tmp_path / SETTINGS
    path.write_text(path.read_text().replace('"k": 1', '"k": 2'))
    with pytest.raises(SchemaError, match="probe.json' was modified"):
        load_probe(tmp_path, kind="probe/x", schema_version=1)


@pytest.mark.parametrize("name", [SETTINGS, TENSORS])
def test_missing_files_and_pipes_are_named(tmp_path, name):
    save_probe(tmp_path, kind="probe/x", schema_version=1, settings={}, tensors={})
    (tmp_path / name).unlink()
    for _ in range(2):
        with pytest.raises(WeightsMissing, match=f"(?s)no saved probe.*{name}"):
            load_probe(tmp_path, kind="probe/x", schema_version=1)
        if not (tmp_path / name).exists():
            os.mkfifo(tmp_path / name)


def test_a_failed_write_leaves_the_probe_as_it_was(tmp_path, monkeypatch):
    settings = {"kind": "probe/x", "schema_version": 1}
    save_probe(tmp_path, **settings, settings={"a": 1}, tensors={"t": torch.zeros(2)})

    def full_disk(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffprobe.probes.serialization.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_probe(tmp_path, **settings, settings={"a": 2}, tensors={"t": torch.ones(2)})
    assert load_probe(tmp_path, **settings)[0] == {"a": 1}
    assert {path.name for path in tmp_path.iterdir()} == {SETTINGS, TENSORS}


def test_sizes_are_those_of_a_tensor(tmp_path):
    tensors = {"W": torch.zeros(3, 5)}
    require_sizes(tmp_path, tensors, d_in=5, n=3)
    for size in (4, 10**12, "5", 5.0, None, True):
        with pytest.raises(WeightsMismatch, match="(?s)probe.json.*d_in is"):
            require_sizes(tmp_path, tensors, d_in=size)
