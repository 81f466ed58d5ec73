"""PROTOCOL.md has the fields, the keys and the version of the code."""

import dataclasses
import json
import re
from pathlib import Path

import diffprobe.features
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.features.manifest import SCHEMA_VERSION

TEXT = (Path(diffprobe.features.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")


def rows(heading: str) -> set[str]:
    section = TEXT.split(f"## {heading}")[1].split("\n## ")[0]
    return {
        name for line in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    }


def test_the_title_has_the_schema_version() -> None:
    assert TEXT.splitlines()[0].endswith(f"schema version {SCHEMA_VERSION}")


def test_the_tables_are_the_files(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    assert rows("manifest.json") == set(json.loads((store.path / "manifest.json").read_text()))
    assert rows("samples.json") == set(json.loads((store.path / "val-0000.tar" / "samples.json").read_text()))


def test_the_keys_of_the_configuration_exist() -> None:
    groups = {"backbone": BackboneConfig, "data": DataConfig, "features": FeaturesConfig}
    named = re.findall(r"`(backbone|data|features)\.(\w+)`", TEXT)
    assert len(named) >= 4
    for group, key in named:
        assert key in {field.name for field in dataclasses.fields(groups[group])}, f"{group}.{key}"
