"""The schema of table.yaml."""

from pathlib import Path

import pytest

from diffprobe.config.search_path import shipped_root
from diffprobe.core.errors import ConfigError
from diffprobe.report.table_spec import NumberFormat, Published, TableAxis, find_spec, load_spec, load_specs

TOY = (Path(__file__).parent / "table.yaml").read_text()


def load(tmp_path, text):
    (tmp_path / "table.yaml").write_text(text)
    return load_spec(tmp_path / "table.yaml")


@pytest.mark.parametrize("path", sorted((shipped_root() / "experiments").rglob("table.yaml")), ids=str)
def test_every_shipped_table_parses(path):
    for spec in load_specs(path):
        used = spec.filter.get("kind") == "use"  # an intervention is its own comparison with the untouched network
        # a latent is dead if no training sample activates it; many cells are compared on val
        on_val = used or spec.select == "val"
        # the spread of labels is that of training images, as in Revelio
        of_train = spec.metric == "dead_fraction" or spec.metric.startswith("sigma_label")
        wanted = "train" if of_train else "val" if on_val else "test"
        assert (used or spec.controls) and spec.filter.get("split") == wanted


def test_a_typo_is_refused_with_file_line_and_nearest_name(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(
            tmp_path,
            TOY.replace("tolerance: 0.02\n    source: Nobody et al. 2025, Figure", "tolerence: 0.02\n    source: F"),
        )
    assert "published[1].tolerence" in str(error.value) and "nearest: published[1].tolerance" in str(error.value)
    line = 1 + TOY.splitlines().index("    value: 0.6") + 1
    assert f"table.yaml, line {line}" in str(error.value)


def test_axes_and_published_places_must_agree(tmp_path):
    with pytest.raises(ConfigError, match="twice"):
        load(tmp_path, TOY.replace("field: tap", "field: timestep"))
    with pytest.raises(ConfigError, match="each axis"):
        load(tmp_path, TOY.replace("{target: group, tap: mid_block, timestep: 25}", "{target: group, tap: mid_block}"))
    with pytest.raises(ConfigError, match="YAML"):
        load(tmp_path, "rows: [")


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path):
    n = len(TOY.splitlines())
    with pytest.raises(ConfigError) as error:
        load(tmp_path, TOY + "filter: {experiment: toy,\n  kind: sae, kind: direction}\ntitle: again\n")
    first = 1 + TOY.splitlines().index("filter: {experiment: toy, kind: classifier, probe: [linear], split: test}")
    text = str(error.value)
    assert "table.yaml" in text and f"'title': lines 1 and {n + 3}" in text
    assert f"'filter': lines {first} and {n + 1}" in text and f"'filter.kind': lines {n + 2} and {n + 2}" in text


def test_several_tables_share_keys_and_bring_their_own(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(TOY + "tables:\n  - {title: one}\n  - {title: two, metric: l0, ranked: false}\n")
    one, two = load_specs(path)
    assert (one.title, two.title, two.metric) == ("one", "two", "l0")
    assert one.ranked and not two.ranked and one.rows == two.rows
    with pytest.raises(ConfigError, match="2 tables"):
        load_spec(path)


def test_a_fault_in_one_of_several_tables_is_placed(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(TOY + "tables:\n  - {title: one}\n  - title: two\n    rankd: false\n")
    with pytest.raises(ConfigError) as error:
        load_specs(path)
    assert "nearest: ranked" in str(error.value) and f"line {len(TOY.splitlines()) + 4}" in str(error.value)
    path.write_text(TOY + "tables: []\n")
    with pytest.raises(ConfigError, match="list of tables"):
        load_specs(path)


def test_numbers_are_written_without_minus_zero():
    percent = NumberFormat(scale=100, decimals=1)
    assert [percent.show(x) for x in (0.8125, -0.0001, 0.0, -0.25)] == ["81.2", "0.0", "0.0", "-25.0"]
    assert percent.show(0.05, signed=True) == "+5.0"
    with pytest.raises(ConfigError, match="decimals"):
        NumberFormat(decimals=-1)


def test_find_spec_searches_the_working_folder_and_names_what_there_is(tmp_path, monkeypatch):
    (tmp_path / "experiments/mine/layers").mkdir(parents=True)
    (tmp_path / "experiments/mine/layers/table.yaml").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    assert find_spec("mine/layers") == (tmp_path / "experiments/mine/layers/table.yaml").resolve()
    with pytest.raises(ConfigError, match="nearest: mine/layers"):
        find_spec("mine/layer")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 0.83", "value: .inf", "'published\\[0\\].value' is inf"),
        ("value: 0.83", "value: .nan", "'published\\[0\\].value' is nan"),
        ("value: 0.83", "value: '0.83'", "'0.83' .str., expected float"),
        ("value: 0.83", "value: true", "True .bool., expected float"),
        ("tolerance: 0.02", "tolerance: -0.02", "tolerance=-0.02 .at least 0."),
        ("timestep: 200}", "timestep: '200'}", "the table has no timestep '200'"),
        ("tap: up_blocks.0, t", "tap: up_blocks.9, t", "the table has no tap 'up_blocks.9'"),
        ("scale: 100", "scale: .inf", "'number.scale' is inf"),
        ("values: [25, 200]", "values: [25, .nan]", "'columns.values\\[1\\]' is nan"),
        ("values: [group, label]", "values: [group, &a label, *a]", "an alias"),
        ("source: Nobody et al. 2025, Figure 2", "source: null", "'published\\[1\\].source' is none"),
    ],
)
def test_published_numbers_and_axes_are_read_strictly(tmp_path, old, new, message):
    assert old in TOY
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, TOY.replace(old, new, 1))


@pytest.mark.parametrize("bad", [{"value": float("nan")}, {"tolerance": float("inf")}, {"tolerance": -1.0}])
def test_a_published_number_of_a_run_is_as_strict(bad):
    fields = {"where": {}, "value": 0.5, "tolerance": 0.1, "source": "S", "provenance": "P", **bad}
    with pytest.raises(ConfigError, match="out of range"):
        Published(**fields)


def test_a_label_is_one_printable_line():
    assert (
        TableAxis(field="target", labels={"a": "x\n\x1b[1my"}, heading="{value}\u202e").label("a")
        == r"x \x1b[1my\u202e"
    )
