"""What may be imported when: the command line starts fast, tables need no torch, the layers hold."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.cli.main import verbs

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "transformers", "lightning", "torchmetrics", "wandb", "hydra", "matplotlib", "numpy")


def loaded_after(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint('loaded:', *sorted(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_help_loads_nothing_heavy() -> None:
    assert loaded_after("from diffprobe.cli.main import main\nmain([])") == set()


@pytest.mark.parametrize("verb", verbs())
def test_help_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    call = f"try: main([{verb!r}, '--help'])\nexcept SystemExit as end: assert not end.code"
    code = f"from diffprobe.cli.main import main\n{call}"
    assert loaded_after(code) == set()


def test_importing_diffprobe_loads_nothing_heavy() -> None:
    assert loaded_after("import diffprobe") == set()


def test_every_verb_keeps_the_contract() -> None:
    from diffprobe.cli.main import VERBS

    for verb in verbs():
        module = VERBS.load(verb.replace("-", "_"))
        assert module.HELP and "\n" not in module.HELP
        assert callable(module.add_arguments) and callable(module.run)


@pytest.mark.parametrize("package", ["config", "report"])
def test_configurations_and_tables_need_no_torch(package: str) -> None:
    code = (
        f"import importlib, pkgutil, diffprobe.{package} as p\n"
        "for m in pkgutil.iter_modules(p.__path__): importlib.import_module(f'{p.__name__}.{m.name}')"
    )
    assert not loaded_after(code) & {"torch", "diffusers", "transformers", "lightning", "torchmetrics", "wandb"}
