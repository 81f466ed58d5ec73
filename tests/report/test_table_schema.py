"""The schema of `table.yaml`: it is the one of the typed spec, and accepts and refuses what the parser does."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError
from diffprobe.report.default_table import default_tables, spec_yaml
from diffprobe.report.table_schema import SCHEMA_FILE, schema_text, table_schema
from diffprobe.report.table_spec import load_specs

ROOT = Path(__file__).parents[2]
FILES = [
    path for path in sorted(ROOT.rglob("table.yaml"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]  # fmt: skip
VALIDATOR = jsonschema.Draft202012Validator(table_schema())
TABLE: dict[str, Any] = {
    "title": "t", "metric": "accuracy", "rows": [{"field": "tap"}], "columns": {"field": "timestep"},
}  # fmt: skip


def parses(tree: Any, folder: Path) -> bool:
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(tree))
    try:
        load_specs(path)
    except ConfigError:
        return False
    return True


def with_value(*keys: Any) -> dict[str, Any]:
    """Return a valid table with one value changed: the keys to it, and the value; None as the value removes the key."""
    *path, last, value = keys
    tree = copy.deepcopy(TABLE)
    place: Any = tree
    for key in path:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


def test_the_shipped_file_is_the_schema_of_the_spec(capsys):
    assert SCHEMA_FILE.read_text("utf-8") == schema_text(), "write it again: SCHEMA_FILE.write_text(schema_text())"
    assert main(["table", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == table_schema()
    jsonschema.Draft202012Validator.check_schema(table_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_table_of_the_repository_is_valid(path):
    VALIDATOR.validate(yaml.safe_load(path.read_text("utf-8")))


def test_the_guide_and_what_is_saved_are_valid(results):
    guide = (ROOT / "docs/users/guide.md").read_text("utf-8")
    (text,) = re.findall(r"^```yaml\n(title:.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    VALIDATOR.validate(yaml.safe_load(text))
    VALIDATOR.validate(yaml.safe_load(spec_yaml(default_tables(results).specs)))


ENTRY = {
    "where": {"tap": "mid_block", "timestep": 25},
    "value": 0.5,
    "tolerance": 0.1,
    "source": "s",
    "provenance": "p",
}
VALID = {
    "least": TABLE,
    "numbers": with_value("number", {"scale": 100, "decimals": 0, "unit": "%"}),
    "values of two types": with_value("rows", 0, "values", ["mid_block", 2, 0.5]),
    "labels": with_value("columns", "labels", {"25": "few"}),
    "a setting": with_value("rows", 0, "field", "config.probe.params.k"),
    "published": with_value("published", [ENTRY]),
    "a list in a filter": with_value("filter", {"split": ["val", "test"], "config.seed": 1}),
    "shared keys": {**with_value("metric", None), "tables": [{"metric": "fvu"}, {"metric": "l0", "ranked": False}]},
}
INVALID = {
    "unknown key": with_value("colums", {"field": "tap"}),
    "unknown key of an axis": with_value("columns", "label", "x"),
    "missing metric": with_value("metric", None),
    "missing field": with_value("rows", 0, "field", None),
    "no rows": with_value("rows", []),
    "rows as a block": with_value("rows", {"field": "tap"}),
    "a number as title": with_value("title", 3),
    "a flag as value": with_value("rows", 0, "values", [True]),
    "text as flag": with_value("ranked", "no"),
    "text as scale": with_value("number", {"scale": "100"}),
    "decimals": with_value("number", {"decimals": 13}),
    "fractional decimals": with_value("number", {"decimals": 1.5}),
    "scale 0": with_value("number", {"scale": 0}),
    "unknown pick": with_value("controls", [{"name": "chance", "title": "c", "pick": "median"}]),
    "control without title": with_value("controls", [{"name": "chance"}]),
    "published without source": with_value("published", [{k: v for k, v in ENTRY.items() if k != "source"}]),
    "negative tolerance": with_value("published", [{**ENTRY, "tolerance": -0.1}]),
    "no tables": {**TABLE, "tables": []},
    "tables without metric": {**with_value("metric", None), "tables": [{"metric": "fvu"}, {"title": "x"}]},
    "a table that is text": {**TABLE, "tables": ["fvu"]},
    "unknown key of a table": {**TABLE, "tables": [{"metrics": "fvu"}]},
    "a list": [TABLE],
}


@pytest.mark.parametrize("name", VALID)
def test_what_the_parser_accepts_is_valid(tmp_path, name):
    assert parses(VALID[name], tmp_path)
    VALIDATOR.validate(VALID[name])


@pytest.mark.parametrize("name", INVALID)
def test_what_the_parser_refuses_is_invalid(tmp_path, name):
    assert not parses(INVALID[name], tmp_path)
    assert not VALIDATOR.is_valid(INVALID[name])


def test_an_unknown_field_is_marked_before_the_table_is_filled():
    assert not VALIDATOR.is_valid(with_value("rows", 0, "field", "layer"))
    assert not VALIDATOR.is_valid(with_value("filter", {"layer": "mid_block"}))


def test_every_key_has_a_description():
    def check(node: Any, at: str) -> None:
        for key, entry in node.get("properties", {}).items():
            assert entry.get("description"), f"{at}.{key}"
            check(entry, f"{at}.{key}")
            check(entry.get("items", {}), f"{at}.{key}")

    check(table_schema(), "")


def test_the_page_on_tables_has_every_key_of_every_block():
    text = (ROOT / "docs/users/tables.md").read_text("utf-8")
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    blocks = [(*dict.fromkeys([*table_schema()["properties"]]),)]
    properties = table_schema()["properties"]
    for key in ("columns", "controls", "number", "marks", "published"):
        block = properties[key]
        blocks.append(tuple(block.get("items", block)["properties"]))
    assert [tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) for section in sections] == blocks
