"""The tutorials: committed with outputs, free of traces of a machine, and executable from a clean kernel."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.markdown import ROOT, notebooks

nbformat = pytest.importorskip("nbformat", reason="extra `docs`")
pytest.importorskip("nbclient", reason="extra `docs`")


def execute_module() -> ModuleType:
    path = ROOT / "docs" / "tutorials" / "execute.py"
    spec = importlib.util.spec_from_file_location("execute_tutorials", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_a_committed_notebook_has_outputs_and_no_traces_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))  # executed once, from top to bottom
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds and kinds & {"stream", "execute_result", "display_data"}
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert execute_module().traces_of_a_machine(notebook) == []
    assert path.stat().st_size < 500_000


def test_there_are_three_notebooks() -> None:
    names = ["first-features-and-probe.ipynb", "sparse-autoencoder.ipynb", "your-images-and-model.ipynb"]
    assert [path.name for path in notebooks()] == names


def test_a_trace_of_a_machine_would_be_found() -> None:
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.v4.new_output("stream", text=f"saved to /{'home'}/someone/runs/x and runs/stores/y\n")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert execute_module().traces_of_a_machine(notebook) == [f"/{'home'}/someone/runs/x"]


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_a_notebook_executes_from_a_clean_kernel(path: Path, tmp_path: Path) -> None:
    module = execute_module()
    executed = module.execute(nbformat.read(path, as_version=4), tmp_path)  # raises at the first error
    assert module.traces_of_a_machine(module.without_machine(executed)) == []
