"""The public Python API: complete, documented, lazy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffprobe

PUBLIC = [name for name in diffprobe.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", diffprobe.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(diffprobe, name) is not None


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_in_the_package_and_at_its_definition(name: str) -> None:
    assert f"``{name}``: " in (diffprobe.__doc__ or "")
    assert getattr(diffprobe, name).__doc__


def test_dir_and_the_stub_list_the_same_names() -> None:
    assert set(diffprobe.__all__) <= set(dir(diffprobe))
    stub = ast.parse(Path(diffprobe.__file__).with_suffix(".pyi").read_text())
    imported = {
        alias.asname: (node.module, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: (diffprobe._PUBLIC[name], name) for name in PUBLIC}


def test_importing_the_package_and_listing_its_names_loads_nothing_heavy() -> None:
    code = (
        "import sys, diffprobe; dir(diffprobe)\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'diffusers', 'transformers', 'lightning', 'hydra', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "DIFFPROBE_SHAPE_CHECKS": "0"}  # they import numpy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n"


def test_other_names_raise_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="DiffusionFeature"):
        diffprobe.DiffusionFeature  # type: ignore[attr-defined]  # noqa: B018
