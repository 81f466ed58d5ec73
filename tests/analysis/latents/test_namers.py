"""Recorded names: read, checked, and given as a namer's answers."""

import json

import pytest

from diffprobe.analysis.latents.namers import RecordedNames, ask
from diffprobe.core.errors import ConfigError, SchemaError


def written(tmp_path, names):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"names": names}))
    return path


def test_recorded_names_are_read(tmp_path):
    namer = RecordedNames.read(written(tmp_path, [{"latent": 3, "name": " dark\n tone "}, {"latent": 0, "name": ""}]))
    assert ask(namer, 3, ["a cat"]) == "dark tone" and ask(namer, 0, []) == ""
    with pytest.raises(SchemaError, match="latent 1 has no recorded name"):
        ask(namer, 1, [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([{"latent": 1, "name": "a"}, {"latent": 1, "name": "b"}], r"names\[1\]: latent 1 has two names"),
        ([{"latent": "1", "name": "a"}], r"names\[0\].latent"),
        ([{"latent": 1}], r"names\[0\].name"),
        ([{"latent": 1, "name": "x" * 201}], "201 characters; allowed: 200"),
        ("text", "names"),
        ([3], r"names\[0\]"),
    ],
)
def test_bad_files_are_refused(tmp_path, names, message):
    with pytest.raises(SchemaError, match=message):
        RecordedNames.read(written(tmp_path, names))


def test_a_namer_sees_captions_and_images_and_has_to_answer_with_text():
    class Echo:
        def name_latent(self, latent, captions, images):
            return f"{latent} {captions[0]} {len(images)}"

    class Wrong:
        def name_latent(self, latent, captions, images):
            return 3

    assert ask(Echo(), 2, ["a cat"], [b"png"]) == "2 a cat 1"
    with pytest.raises(ConfigError, match="answered 3 for latent 2"):
        ask(Wrong(), 2, [])
