import pytest
import torch

from diffprobe.core.errors import SchemaError, WeightsMissing
from diffprobe.probes.serialization import SETTINGS, kind_of, load_probe, save_probe


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
        with pytest.raises(SchemaError, match="not the settings file of a probe"):
            kind_of(tmp_path)
