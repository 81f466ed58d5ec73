"""Of a test with many hostile cases one in four runs, the same ones each time; with DIFFPROBE_ATTACKS=all, each.

All cases take half an hour of processor time, most of it for forking. `make attacks` runs all.
"""

import os
import zlib
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FEW, ONE_IN = 12, 4


def left_out(cases: dict[str, list[str]]) -> set[str]:
    """Return the cases that do not run.

    Args:
        cases: name of a test -> names of its cases, in their order.
    Returns: of each test with more than `FEW` cases all but one in `ONE_IN`. Where that starts depends on the name.
    """
    many = {test: names for test, names in cases.items() if len(names) > FEW}
    starts = {test: zlib.crc32(test.encode()) % ONE_IN for test in many}
    return {name for test, names in many.items() for i, name in enumerate(names) if i % ONE_IN != starts[test]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of the tests in this folder."""
    if os.environ.get("DIFFPROBE_ATTACKS") == "all":
        return
    cases: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if HERE in item.path.parents:
            cases[item.nodeid.partition("[")[0]].append(item.nodeid)
    dropped = left_out(cases)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in dropped])
    items[:] = [item for item in items if item.nodeid not in dropped]
