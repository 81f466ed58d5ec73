"""Execute the tutorials and write their outputs into them: python docs/tutorials/execute.py [NAME ...].

Each notebook runs in a fresh kernel and an empty folder, so that paths in its outputs are relative. Times, standard
error, and metadata that differs between machines are removed.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
TIMEOUT_S = 900


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a fresh kernel whose working folder is `folder`. Raises: CellExecutionError."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "", "HF_HUB_OFFLINE": "1"}
    del environment["MPLBACKEND"]  # the kernel's own inline backend
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    executed: nbformat.NotebookNode = client.execute(env=environment)
    return executed


def without_machine(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between machines and runs: times, kernel versions, standard error."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def traces_of_a_machine(notebook: nbformat.NotebookNode) -> list[str]:
    """List absolute paths in the outputs of a notebook."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            found += [path for text in texts for path in re.findall(r"(?<![\w.])/(?:\w[\w.-]*/)+[\w.-]*", str(text))]
    return found


def main() -> int:
    """Execute the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks of this folder (default: all)")
    parser.add_argument(
        "--folder", type=Path, help="working folder; stores that are there are used (default: an empty one)"
    )
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.name for path in FOLDER.glob("*.ipynb"))
    for name in names:
        notebook = nbformat.read(FOLDER / name, as_version=4)
        with tempfile.TemporaryDirectory() as empty:
            executed = without_machine(execute(notebook, arguments.folder or Path(empty)))
        traces = traces_of_a_machine(executed)
        if traces:
            print(f"{name}: absolute paths in the outputs: {', '.join(traces)}", file=sys.stderr)
            return 1
        nbformat.write(executed, FOLDER / name)
        print(f"executed {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
