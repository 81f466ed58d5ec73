import pytest

from diffprobe.analysis.scene_labels import RERENDERING, SceneLabel, merged, read_labels, write_labels
from diffprobe.core.errors import ConfigError, SchemaError, UnknownName
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
KEYS = ["cook-0", "cook-1"]


def label(key: str, value: str, by: str = RERENDERING) -> SceneLabel:
    return SceneLabel(key=key, factor="texture", value=value, by=by)


def test_labels_come_back_and_those_by_eye_replace_others(tmp_path):
    automatic = {(key, "texture"): label(key, "striped") for key in KEYS}
    write_labels(tmp_path / "labels.csv", automatic.values())
    assert read_labels(tmp_path / "labels.csv", SPEC, KEYS) == automatic
    (tmp_path / "eye.csv").write_text("key,factor,value,by\ncook-1,texture,plain,ab\ncook-0,texture,striped,ab\n")
    found, n_differing = merged(automatic, read_labels(tmp_path / "eye.csv", SPEC, KEYS))
    assert n_differing == 1
    assert found["cook-1", "texture"] == label("cook-1", "plain", "ab") and found["cook-0", "texture"].by == "ab"


@pytest.mark.parametrize(
    ("text", "error", "fact"),
    [
        ("key,factor,value\n", SchemaError, "key,factor,value,by"),
        ("", SchemaError, "key,factor,value,by"),
        ("key,factor,value,by\ncook-0,texture,plain\n", SchemaError, "line 2"),
        ("key,factor,value,by\ncook-0,texure,plain,ab\n", UnknownName, "texture"),
        ("key,factor,value,by\ncook-0,texture,stripes,ab\n", UnknownName, "striped"),
        ("key,factor,value,by\ncook-0,texture,plain,\n", ConfigError, "line 2"),
        ("key,factor,value,by\ncook-7,texture,plain,ab\n", ConfigError, "cook-7"),
        ("key,factor,value,by\ncook-0,texture,plain,ab\ncook-0,texture,plain,cd\n", ConfigError, "line 3"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_line(tmp_path, text, error, fact):
    (tmp_path / "eye.csv").write_text(text)
    with pytest.raises(error, match=fact):
        read_labels(tmp_path / "eye.csv", SPEC, KEYS)
