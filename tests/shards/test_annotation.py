"""Annotations of samples, and faults with shard and key."""

import json
from collections.abc import Callable

import pytest

from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.shards.annotation import Annotation, Caps, Fields, image_field, parse_annotation
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
        ({"json": b'{"captions": "a"}'}, "'captions' must be a list of texts"),
        ({"json": b'{"attributes": ["a"]}'}, "must map names to values, not be list"),
        ({"json": b'{"attributes": {"a": {"b": 1}}}'}, "'attributes.a' must be one value"),
        ({"json": b'{"caption": "a \\ud83d cup"}'}, "lone surrogate"),
        ({"json": b'{"captions": ["a cup", "\\ude00"]}'}, "lone surrogate"),
        ({"json": b'{"class_name": "\xed\xa0\x80"}'}, "field 'json' is not JSON"),
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


@pytest.mark.parametrize("empty", ["null", "NaN", '""', '" "', '"\\n\\t"', '"NaN"', '"nan"', '"null"', '" nan "'])
def test_a_missing_value_is_no_value_wherever_it_is(empty: str) -> None:
    record = (
        f'{{"label": {empty}, "class_name": {empty}, "caption": {empty}, "captions": {empty}, '
        f'"attributes": {{"gender": {empty}, "tone": "dark"}}}}'
    )
    assert parse_annotation(raw(json=record.encode()), Fields()) == Annotation(attributes={"tone": "dark"})
    captions = f'{{"captions": [{empty}, "a cup", {empty}], "attributes": {"null" if "n" in empty else "NaN"}}}'
    assert parse_annotation(raw(json=captions.encode()), Fields()) == Annotation(captions=("a cup",))


@pytest.mark.parametrize("empty", [b"", b" \n", b"NaN", b"nan\n", b"null"])
def test_a_missing_value_in_plain_text_is_no_value(empty: bytes) -> None:
    assert parse_annotation(raw(cls=empty, txt=empty), Fields()) == Annotation()
    with_json = parse_annotation(raw(cls=empty, txt=empty, json=b'{"label": 3, "caption": "a cup"}'), Fields())
    assert (with_json.label, with_json.caption) == (3, "a cup")
    assert parse_annotation(raw(json=b'{"caption": ""}', txt=b"a cup"), Fields()).caption == "a cup"


def test_texts_that_only_resemble_missing_values_are_values() -> None:
    for text in ("none", "None", "naan", "N/A", "NULL island", "0", "-"):
        assert of({"class_name": text, "attributes": {"a": text}}).attributes == {"a": text}
    assert of({"attributes": {"a": 0, "b": False}}).attributes == {"a": "0", "b": "false"}


@pytest.mark.parametrize(
    "record",
    [
        b'{"label": 1, "label": 2}',
        b'{"attributes": {"a": 1e999}}',
        b'{"label": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"version https://git-lfs.github.com/spec/v1",
    ],
)
def test_json_that_python_reads_or_crashes_on_is_a_fault_in_one_line(record: bytes) -> None:
    with pytest.raises(SampleError, match="^train-0003.tar, sample 'cup/1': field 'json' is not JSON") as caught:
        parse_annotation(raw(json=record), Fields())
    assert "0x" not in caught.value.what and "\n" not in caught.value.what and len(caught.value.what) < 200


@pytest.mark.parametrize("record", [b'{"attributes": {"a": Infinity}}', b'{"caption": -Infinity}'])
def test_infinity_is_no_value_and_not_missing(record: bytes) -> None:
    with pytest.raises(SampleError, match="json '(attributes.a|caption)' is infinite"):
        parse_annotation(raw(json=record), Fields())


def test_annotations_and_labels_have_caps_that_can_be_raised() -> None:
    long = raw(json=b'{"caption": "' + b"x" * 1000 + b'"}', txt=b"y" * 1000)
    with pytest.raises(SampleError, match="1,015 bytes, more than 100, the cap data.caps.annotation_bytes"):
        parse_annotation(long, Fields(), caps=Caps(annotation_bytes=100))
    assert len(parse_annotation(long, Fields()).caption) == 1000
    with pytest.raises(SampleError, match="label 4000001 is larger than 4000000, the cap data.caps.label"):
        of({"label": 4_000_001})
    with pytest.raises(SampleError, match="label 9999999999999 is larger"):
        of({}, cls=b"9999999999999")
    assert parse_annotation(raw(json=b'{"label": 5000000}'), Fields(), caps=Caps(label=5_000_000)).label == 5_000_000


@pytest.mark.parametrize(
    "values",
    [
        {"image": ("JPEG",)},
        {"image": (".jpg",)},
        {"json": "JSON"},
        {"image": ("json",)},
        {"image": ("txt",)},
        {"json": "cls"},
    ],
)
def test_names_of_fields_that_cannot_be_meant_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Fields(**values)  # type: ignore[arg-type]
