"""Records of matches that are known: the best cell on val, its score on test, its differences to controls."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe.analysis.pck import Matches
from diffprobe.config.parse import parse
from diffprobe.evaluation.correspondence_records import SIDE_CONFUSION, Measured, Split, correspondence_records
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation

N = 40
GOOD, BAD = "up_blocks.0@t20:empty:none", "up_blocks.1@t20:empty:none"
CONFIG = parse(
    CorrespondenceEvaluation,
    {
        "backbone": {"path": "x"},
        "data": {"path": "y"},
        "features": {"taps": ["up_blocks.*"], "timesteps": [20], "pool": "none"},
        "alphas": [0.1],
        "sides": [["left", "right"]],
    },
)


def split_of(right: dict[str, dict[str, float]]) -> Split:
    """Make a split of two points per pair: a share of the first pairs is matched exactly, the rest at the partner."""
    pair = np.repeat(np.arange(N), 2)
    true = np.tile([[10.0, 10.0], [50.0, 10.0]], (N, 1))
    partners: NDArray[np.float64] = true.reshape(N, 2, 2)[:, ::-1].reshape(-1, 2).copy()

    def matches(share: float) -> Matches:
        found = np.where((pair < share * N)[:, None], true, partners)
        return Matches(pair=pair, name=("left", "right") * N, true=true, found=found, box=None, resolution=64)

    rungs = {rung: {cell: matches(share) for cell, share in cells.items()} for rung, cells in right.items()}
    return rungs, list(range(N)), partners, np.ones(2 * N, np.bool_)


@pytest.fixture(scope="module")
def measured() -> Measured:
    own = {"own": {BAD: 0.5, GOOD: 0.9}, "pixels": {"pixels": 0.25}, "same_place": {"": 0.0}}
    return Measured(
        val=split_of(own), test=split_of(own), names={"val": "dev", "test": "eval"}, notes={}, clusters="sample"
    )


def test_the_best_cell_on_val_is_scored_on_test_beside_its_controls(measured: Measured) -> None:
    records = correspondence_records(CONFIG, measured)
    val = [record for record in records if record.split == "dev"]
    assert [(record.cell, record.value) for record in val if "per_point" in record.name] == [(BAD, 0.5), (GOOD, 0.9)]
    by_point, by_image, sides = (record for record in records if record.split == "eval")
    assert by_point.cell == by_image.cell == sides.cell == GOOD and sides.name == SIDE_CONFUSION
    assert by_point.value == by_image.value == 0.9 and by_point.controls["pixels"] == 0.25
    assert by_point.controls["chance"] == pytest.approx(np.pi * 6.4**2 / 64**2, rel=0.05)
    value, low, high = by_point.detail["differences"]["pixels"]
    assert value == pytest.approx(0.65) and 0.4 < low < value < high < 0.9
    assert by_point.detail["by_point"] == {"left": 0.9, "right": 0.9}
    assert sides.value == pytest.approx(0.1) and sides.controls["pixels"] == 0.75


def test_features_beside_the_cells_choose_their_own_and_are_compared_in_pairs(measured: Measured) -> None:
    rungs = {"own": {BAD: 0.5, GOOD: 0.9}, "hyperfeatures": {"step1": 1.0, "step2": 0.7}, "same_place": {"": 0.0}}
    notes = {"hyperfeatures": {"weights_by_state": {"step1": {GOOD: 1.0}, "step2": {GOOD: 0.5}}}}
    beside = Measured(val=split_of(rungs), test=split_of(rungs), names=measured.names, notes=notes, clusters="sample")
    records = [one for one in correspondence_records(CONFIG, beside) if one.split == "eval"]
    other = [one for one in records if one.probe == "hyperfeatures"]
    assert [one.value for one in other] == [1.0, 1.0] and other[0].detail["choice"] == "step1"
    assert other[0].detail["weights"] == {GOOD: 1.0} and other[0].cell is None
    above, low, high = other[0].detail["above_nearest_neighbour"]
    assert above == pytest.approx(0.1) and 0 < low < above < high < 0.25
    assert records[0].value == 0.9 and "hyperfeatures" not in records[0].controls
