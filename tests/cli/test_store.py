"""`diffprobe store`, from the command line."""

import json

import pytest

from diffprobe.cli.main import main
from tests.artifacts import edit


@pytest.fixture
def store(tiny_sd, tiny_shards, tmp_path):
    """A store of one cell in its own folder."""
    from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
    from diffprobe.features.extract import extract

    features = FeaturesConfig(taps=("mid_block",), timesteps=(20,), store=str(tmp_path / "stores"))
    return extract(BackboneConfig(path=str(tiny_sd)), DataConfig(path=str(tiny_shards)), features, progress=False)


def test_verify_reports_a_flipped_byte(store, capsys):
    path = sorted(store.glob("val-*/*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    assert main(["store", "verify", str(store)]) == 1
    out = capsys.readouterr().out
    assert f"{path.parent.name}/{path.name}" in out and "1 faults" in out


def test_verify_reports_an_edited_manifest_and_to_foreign_files(store, capsys):
    (store / "notes.txt").write_text("mine")
    assert main(["store", "verify", str(store)]) == 1
    assert "notes.txt: not part of the store" in capsys.readouterr().out
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"CC0-1.0"', '"mine"'))
    assert main(["store", "verify", str(store)]) == 1
    assert "manifest.json: " in capsys.readouterr().out


def test_an_empty_folder_shows_how_to_create_a_store(tmp_path, capsys):
    assert main(["store", "list", str(tmp_path)]) == 0
    assert "no feature store" in capsys.readouterr().out
    assert main(["store", "show", str(tmp_path)]) == 2
    assert "StoreIncomplete" in capsys.readouterr().err
    assert main(["store", "verify", str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_a_broken_store_is_listed_with_its_fault(store, capsys):
    (store / "manifest.json").write_text("{}")
    assert main(["store", "list", str(store.parent)]) == 1
    assert f"{store.name}  cannot be read" in capsys.readouterr().out


def test_a_store_of_an_older_schema_is_listed_with_the_command_that_makes_it_anew(store, capsys):
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    assert main(["store", "list", str(store.parent)]) == 1
    out = capsys.readouterr().out
    assert f"{store.name}  cannot be read" in out and "schema version 2 of 'feature_store', expected 3" in out
    assert "fix: extract it again: diffprobe extract backbone.path=" in out and "features.timesteps=[20]" in out
    for command in ("show", "verify"):
        assert main(["store", command, str(store)]) in (1, 2)
        shown = "".join(capsys.readouterr())
        assert "schema version 2" in shown and "diffprobe extract backbone.path=" in shown


def test_what_no_digest_covers_is_refused_and_long_texts_are_shortened(store, capsys):
    recorded = json.loads((store / "manifest.json").read_text())["recorded"]
    edit(store / "manifest.json", recorded={**recorded, "taps": {}})
    assert main(["store", "show", str(store)]) == 2
    assert "recorded is not complete (KeyError: 'mid_block')" in capsys.readouterr().err
    edit(store / "manifest.json", cells={"x" * 5000: 8})
    assert (main(["store", "verify", str(store)]), main(["store", "list", str(store.parent)])) == (1, 1)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 2500
