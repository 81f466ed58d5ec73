"""Data URIs."""

import base64

import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError
from diffprobe.report.data_uri import data_uri


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "gif"])
def test_the_type_is_read_from_the_bytes(tmp_path, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / "image", format=kind)
    data = (tmp_path / "image").read_bytes()
    head, _, body = data_uri(data).partition(",")
    assert head == f"data:image/{kind};base64" and base64.b64decode(body) == data


@pytest.mark.parametrize("data", [b"", b"<svg onload=x>", b"RIFF0000WAVE"])
def test_anything_else_is_refused(data):
    with pytest.raises(ConfigError, match="PNG, WebP, JPEG, GIF"):
        data_uri(data)
