"""The tables of docs/users/vpd.md are those of the recorded results."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_vpd", ROOT / "docs/record_vpd.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_the_results(record: ModuleType) -> None:
    text = record.PAGE.read_text()
    for name, lines in record.blocks().items():
        own = text.split(f"<!-- {name}:start -->\n")[1].split(f"<!-- {name}:end -->")[0]
        assert own.strip().splitlines() == lines


def test_the_runs_are_of_the_published_recipe_and_of_equal_size(record: ModuleType) -> None:
    found = record.results()
    assert {switch for task, switch in found if task == "segmentation"} == {"finetune", "adapter", "frozen"}
    for (_, switch), result in found.items():
        config = result.config
        assert (config["recipe"], config["timestep"], config["add_noise"], config["scale_latents"]) == (
            "vpd",
            1,
            False,
            False,
        )
        assert (config["n_train"], config["trainer"]["max_epochs"], config["n_test"]) == (1600, 3, 400)
        assert record.record_of(result).probe == ("vpd" if switch == "finetune" else f"vpd-{switch}")


def test_the_frozen_head_of_a_run_is_that_of_the_run_with_the_frozen_switch(record: ModuleType) -> None:
    found = record.results()
    alone = record.record_of(found["segmentation", "frozen"]).value
    for switch in ("adapter", "finetune"):
        assert record.record_of(found["segmentation", switch]).controls["frozen"] == pytest.approx(alone, abs=1e-3)


def test_a_second_computation_holds_less(record: ModuleType) -> None:
    held = record.held_bytes(batch=2)
    assert held["checkpointing_true"] < 0.7 * held["checkpointing_false"]


def test_the_memory_that_the_page_states_is_measured_again(record: ModuleType) -> None:
    kept = json.loads((record.RESULTS / record.HELD).read_text())
    assert record.held_bytes(kept["batch"]) == pytest.approx(kept, rel=0.05)


def test_the_random_control_is_trained_as_its_row_and_the_page_says_what_it_reaches(record: ModuleType) -> None:
    found = {key: record.record_of(result) for key, result in record.results().items()}
    random = {
        switch: found["segmentation", switch].controls["random_weights"] for switch in ("frozen", "adapter", "finetune")
    }
    assert random["frozen"] < random["adapter"] < random["finetune"]
    assert random["finetune"] == pytest.approx(found["segmentation", "frozen"].value, abs=5e-3)
    low, high = found["referring", "finetune"].detail["differences"]["random_weights"][1:]
    assert low < 0 < high
    assert found["depth", "finetune"].detail["differences"]["random_weights"][2] < 0  # an error
