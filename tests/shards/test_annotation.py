"""Annotations of samples, and faults with shard and key."""

import json
from collections.abc import Callable

import pytest

from diffprobe.core.errors import SampleError
from diffprobe.shards.annotation import Annotation, Fields, image_field, parse_annotation
from diffprobe.shards.reader import RawSample


def raw(**files: bytes) -> RawSample:
    return RawSample(key="cup/1", shard="train-0003.tar", position=0, files=files)


def of(record: object, **files: bytes) -> Annotation:
    return parse_annotation(raw(json=json.dumps(record).encode(), **files), Fields())


def test_everything_is_read() -> None:
    record = {
        "label": 2, "class_name": "cup", "caption": "a cup", "captions": ["a mug"],
        "attributes": {"tone": "dark", "old": True, "n": 3, "gone": None}, "more": 1,
    }  # fmt: skip
    assert of(record) == Annotation(
        label=2, class_name="cup", caption="a cup", captions=("a mug",),
        attributes={"tone": "dark", "old": "true", "n": "3"},
    )  # fmt: skip


def test_nothing_has_to_be_there() -> None:
    assert parse_annotation(raw(jpg=b""), Fields()) == Annotation()


def test_plain_webdataset_fields() -> None:
    assert parse_annotation(raw(cls=b"7\n", txt=b"a cup\n"), Fields()) == Annotation(
        label=7, caption="a cup", captions=("a cup",)
    )
    assert of({"caption": "json first", "label": 7}, cls=b"7", txt=b"a cup").caption == "json first"


def test_a_character_in_two_escapes_is_whole() -> None:
    assert parse_annotation(raw(json=b'{"caption": "\\ud83d\\ude00"}'), Fields()).caption == "\U0001f600"


def test_field_names_are_the_users() -> None:
    fields = Fields(json="meta", label="y", caption="text")
    found = parse_annotation(raw(meta=b'{"y": 1, "text": "t", "label": 9}'), fields)
    assert (found.label, found.caption) == (1, "t")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"json": b"{"}, "field 'json' is not JSON"),
        ({"json": b"\xff"}, "field 'json' is not JSON"),
        ({"json": b"[1]"}, "must be a JSON object, not list"),
        ({"json": b'{"label": "3"}'}, "'label' is '3', expected an integer from 0"),
        ({"json": b'{"label": true}'}, "'label' is True, expected an integer from 0"),
        ({"json": b'{"label": -1}'}, "'label' is -1, expected an integer from 0"),
        ({"json": b'{"class_name": 3}'}, "'class_name' must be a text, not int"),
        ({"json": b'{"label": 1, "class_name": ""}'}, "'class_name' is empty"),
        ({"json": b'{"captions": "a"}'}, "'captions' must be a list of texts"),
        ({"json": b'{"attributes": ["a"]}'}, "must map names to values, not be list"),
        ({"json": b'{"attributes": {"a": {"b": 1}}}'}, "'attributes.a' must be one value"),
        ({"json": b'{"caption": "a \\ud83d cup"}'}, "lone surrogate"),
        ({"json": b'{"captions": ["a cup", "\\ude00"]}'}, "lone surrogate"),
        ({"json": b'{"class_name": "\xed\xa0\x80"}'}, "lone surrogate"),
        ({"json": b'{"attributes": {"tone": "\\ud800"}}'}, "lone surrogate"),
        ({"cls": b"cup"}, "field 'cls' is 'cup'"),
        ({"cls": b"1", "json": b'{"label": 2}'}, "label 1, the json has 2"),
        ({"txt": b"\xff"}, "field 'txt' is not UTF-8"),
    ],
)
def test_faults_name_shard_and_key(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse_annotation(raw(**files), Fields())
    assert caught.value.what.startswith("train-0003.tar, sample 'cup/1': ")
    assert message in caught.value.what
    assert f"fields: {', '.join(sorted(files))}" in str(caught.value)


def test_exactly_one_image(png: Callable[..., bytes]) -> None:
    assert image_field(raw(json=b"", png=b""), Fields()) == "png"
    with pytest.raises(SampleError, match="no image \\(jpg or png or webp\\)"):
        image_field(raw(json=b""), Fields())
    with pytest.raises(SampleError, match="several images: jpg, png"):
        image_field(raw(png=b"", jpg=b""), Fields())
