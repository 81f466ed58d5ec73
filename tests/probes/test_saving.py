import pytest
import torch

from diffprobe.core.errors import SchemaError
from diffprobe.probes.saving import load_probe, save_probe


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
