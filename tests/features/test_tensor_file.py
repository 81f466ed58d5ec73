"""StoredRows written in parts are an ordinary safetensors file, and come back in any parts."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.features.tensor_file import RowWriter, read_rows, rows_shape


def write(path, rows, parts, *, capacity=None):
    writer = RowWriter(path, "features", capacity or len(rows), tuple(rows.shape[1:]))
    for part in rows.split(parts):
        writer.append(part)
    writer.close()
    return path


@pytest.mark.parametrize("shape", [(7, 3), (7, 2, 3, 4), (1, 5)])
@pytest.mark.parametrize("parts", [1, 3, 10])
def test_rows_come_back_in_any_parts(tmp_path, shape, parts):
    rows = torch.randn(shape)
    path = write(tmp_path / "a.safetensors", rows, parts)
    assert torch.equal(load_file(path)["features"], rows)
    assert rows_shape(path, "features") == shape
    for batch_size in (1, 2, 100):
        found = list(read_rows(path, "features", batch_size))
        assert [len(part) for part in found[:-1]] == [batch_size] * (len(found) - 1)
        assert torch.equal(torch.cat(found), rows)


def test_fewer_rows_than_announced_are_a_complete_file(tmp_path):
    rows = torch.randn(3, 4)
    path = write(tmp_path / "a.safetensors", rows, 2, capacity=1000)
    assert torch.equal(load_file(path)["features"], rows)
    assert torch.equal(torch.cat(list(read_rows(path, "features", 2))), rows)


def test_rows_that_were_read_can_be_written_to(tmp_path):
    path = write(tmp_path / "a.safetensors", torch.zeros(2, 2), 1)
    before = path.read_bytes()
    next(read_rows(path, "features", 2)).add_(1)
    assert path.read_bytes() == before


def test_rows_of_another_shape_are_refused(tmp_path):
    writer = RowWriter(tmp_path / "a", "features", 4, (3,))
    with pytest.raises(RunFailed, match=r"rows of shape \(3,\), got \(2,\)"):
        writer.append(torch.zeros(1, 2))
    writer.abandon()
    writer.abandon()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"0", lambda data: data[:5]])
def test_a_file_of_another_length_is_refused(tmp_path, change):
    path = write(tmp_path / "a.safetensors", torch.zeros(2, 2), 1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SchemaError):
        list(read_rows(path, "features", 1))


def test_files_of_others_are_refused(tmp_path):
    save_file({"features": torch.zeros(2, 2, dtype=torch.float16)}, tmp_path / "half")
    save_file({"weights": torch.zeros(2, 2)}, tmp_path / "other")
    for name in ("half", "other"):
        with pytest.raises(SchemaError):
            rows_shape(tmp_path / name, "features")
