"""DTD: the authors' partitions."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.shards.datasets.dtd import build, tiny


def test_a_partition_is_chosen(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    built = build(**arguments, out=tmp_path / "a")  # type: ignore[arg-type]
    other = build(**{**arguments, "name": "dtd-2", "partition": 2}, out=tmp_path / "b")  # type: ignore[arg-type]
    assert built.classes == ("banded", "zigzagged") and built.digest != other.digest
    with pytest.raises(ConfigError, match="--partition 11 .*1 to 10"):
        build(**{**arguments, "partition": 11}, out=tmp_path / "c")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="lacks 3 files(?s:.*)train3.txt"):
        build(**{**arguments, "partition": 3}, out=tmp_path / "c")  # type: ignore[arg-type]
