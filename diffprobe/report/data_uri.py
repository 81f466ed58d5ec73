"""Images as data URIs, which keep a page self-contained."""

import base64

from diffprobe.core.errors import ConfigError

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def data_uri(data: bytes) -> str:
    """Return an encoded image as a data URI; its type is detected from its first bytes.

    Raises: ConfigError for any type but PNG, WebP, JPEG and GIF (SVG can contain scripts).
    """
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise ConfigError(
            f"an image of {len(data)} bytes has an unknown type (it starts with {data[:8]!r}).",
            "allowed: PNG, WebP, JPEG, GIF",
        )
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
