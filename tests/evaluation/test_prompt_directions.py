"""Directions from a store of planted prompt latents."""

import numpy as np
import pytest

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, DiffprobeError, SplitLeak, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.certificates import direction as certificate
from diffprobe.evaluation.decode import DecodeConfig, decode, run_of
from diffprobe.evaluation.prompt_directions import PromptDirectionConfig, make_directions
from diffprobe.probes.direction.base import Direction
from tests.evaluation.prompt_stores import CELLS, DIRECTION, write_prompt_store

ENDS = {"target": "texture", "positive": "striped", "negative": "plain"}
ONE_CELL, REREAD, MAP = CELLS


def test_a_direction_per_cell_is_saved_as_other_verbs_read_it(tmp_path):
    said = []
    config = PromptDirectionConfig(**ENDS)
    path = make_directions(
        write_prompt_store(tmp_path / "stores"), config, output=tmp_path / "runs", announce=said.append
    )
    result = read_result(path)
    assert result.kind == "prompt_directions" and {record.cell for record in result.metrics} == {ONE_CELL, REREAD}
    assert [line for line in said if MAP in line]
    of = {(record.cell, record.name): record for record in result.metrics}
    assert of[ONE_CELL, "norm"].value == pytest.approx(2.0, abs=0.1)
    assert of[REREAD, "norm"].value == pytest.approx(4.0, abs=0.2)
    assert of[ONE_CELL, "norm"].detail["contexts"] == of[ONE_CELL, "norm"].detail["seeds"] == 4
    for name in ("split_half_contexts", "split_half_seeds"):
        low, high = of[ONE_CELL, name].detail["range_over_halves"]
        assert 0.9 < low <= of[ONE_CELL, name].value <= high <= 1
    folder = path.parent / "probes" / "texture" / ONE_CELL.replace(":", ".")
    saved = Direction.load(folder)
    assert saved.vector.numpy() @ DIRECTION > 0.99 and saved.cell == ONE_CELL
    assert (saved.target, saved.positive, saved.negative) == ("texture", "striped", "plain")
    assert saved.scale == of[ONE_CELL, "norm"].value and saved.estimator == "paired_mean_difference"
    assert certificate.accepts(folder)
    run = run_of(folder)
    assert run is not None and run.run == result.run


def test_the_text_encoder_stands_beside_the_cells(tiny_sd, tmp_path):
    store = write_prompt_store(tmp_path / "stores")
    path = make_directions(store, PromptDirectionConfig(**ENDS, text_encoder=str(tiny_sd)), output=tmp_path / "runs")
    text = {record.name: record for record in read_result(path).metrics if record.cell is None}
    assert list(text) == ["norm", "split_half_contexts", "held_out_pairs"]
    assert {record.probe for record in text.values()} == {"text_mean_difference"}
    from diffprobe.evaluation.decode import open_text_encoder

    contexts = ("cook", "judge", "pilot", "poet")
    encode = open_text_encoder(str(tiny_sd)).mean_states
    above, below = (encode([f"a {name}, {value} clothes" for name in contexts]) for value in ("striped", "plain"))
    changes = (above - below).double().numpy()
    assert text["norm"].value == pytest.approx(np.linalg.norm(changes.mean(0)), rel=1e-4)
    right = [changes[i] @ np.delete(changes, i, axis=0).mean(0) > 0 for i in range(4)]
    assert text["held_out_pairs"].value == np.mean(right) and text["held_out_pairs"].controls == {"chance": 0.5}


def test_held_out_pairs_of_a_planted_direction(tmp_path):
    store = write_prompt_store(tmp_path / "stores")
    path = make_directions(store, PromptDirectionConfig(**ENDS), output=tmp_path / "runs")
    assert [r.value for r in read_result(path).metrics if r.name == "held_out_pairs"] == [1.0, 1.0]


def test_its_own_prompts_do_not_decode_a_direction(tmp_path):
    store = write_prompt_store(tmp_path / "stores")
    path = make_directions(store, PromptDirectionConfig(**ENDS), output=tmp_path / "runs")
    folder = path.parent / "probes" / "texture" / ONE_CELL.replace(":", ".")
    with pytest.raises(SplitLeak, match="train"):
        decode(folder, DecodeConfig(store=str(store), split="train", group_by="context"), output=tmp_path / "runs")


def test_ends_that_change_places_turn_the_direction(tmp_path):
    store = write_prompt_store(tmp_path)
    turned = {"target": "texture", "positive": "plain", "negative": "striped"}
    found = [
        Direction.load(make_directions(
            store, PromptDirectionConfig(**ends, cells=("mid_block@t199",)), output=tmp_path / "runs"
        ).parent / "probes" / "texture" / ONE_CELL.replace(":", "."))
        for ends in (ENDS, turned)
    ]  # fmt: skip
    assert np.array_equal(found[0].vector.numpy(), -found[1].vector.numpy())
    assert found[0].midpoint == pytest.approx(-found[1].midpoint) and found[0].scale == found[1].scale


def test_the_midpoint_is_where_samples_change_sides(tmp_path):
    from diffprobe.features.prompt_latents import load_prompt_latents

    store = write_prompt_store(tmp_path, strength=40.0)
    path = make_directions(store, PromptDirectionConfig(**ENDS), output=tmp_path / "runs")
    saved = Direction.load(path.parent / "probes" / "texture" / ONE_CELL.replace(":", "."))
    features, _, attributes = load_prompt_latents(store, ONE_CELL)
    assert saved.predict(features.flatten(0, 1)).reshape(features.shape[:2]).all(1).tolist() == [
        value == "striped" for value in attributes["texture"]
    ]


def test_what_has_no_direction_is_refused_by_name(tmp_path):
    store = write_prompt_store(tmp_path / "stores")
    output = tmp_path / "runs"
    for changed, error, fact in (
        ({"target": "textur"}, UnknownName, "texture"),
        ({"negative": "striped"}, ConfigError, "striped"),
        ({"cells": ("mid_block@t200", "mid_block@t5")}, UnknownName, "mid_block@t5"),
        ({"cells": ("up_blocks.0",)}, ConfigError, Cell.parse(MAP).name),
        ({"split": "test"}, UnknownName, "test"),
    ):
        with pytest.raises(error, match=fact):
            make_directions(store, PromptDirectionConfig(**{**ENDS, **changed}), output=output)
    with pytest.raises(ConfigError, match="one seed"):
        make_directions(write_prompt_store(tmp_path / "one", seeds=1), PromptDirectionConfig(**ENDS), output=output)
    with pytest.raises(DiffprobeError, match="1 context"):
        make_directions(
            write_prompt_store(tmp_path / "few", contexts=["cook"]), PromptDirectionConfig(**ENDS), output=output
        )
    assert not output.exists()


def test_wrong_settings_are_refused():
    for settings, fact in (
        ({}, "target, positive, negative"),
        ({**ENDS, "context": ""}, "context"),
        ({**ENDS, "n_halves": 0}, "n_halves=0"),
        ({**ENDS, "level": 1.0}, "level=1"),
    ):
        with pytest.raises(ConfigError, match=fact):
            PromptDirectionConfig(**settings)
