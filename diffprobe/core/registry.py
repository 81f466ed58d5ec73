"""Registries: the modules behind the names in configs, on the command line and in saved files.

A registry is a package whose files are its entries: the name of the file is the name of the entry, and a file is
imported when its entry is loaded. To add an entry, add a file. Files that begin with `_`, and those that the package
lists in `SHARED` (code shared by its entries), are not entries.
"""

import ast
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from diffprobe.core.errors import unknown


@dataclass(frozen=True)
class Registry:
    """The public modules of one package, by name.

    Attributes:
        package: dotted name of the package whose files are the entries.
        kind: noun for an entry in messages, for example "probe".
    """

    package: str
    kind: str

    def names(self) -> list[str]:
        """List the entries in alphabetical order, without importing them."""
        package = import_module(self.package)
        shared = getattr(package, "SHARED", ())
        found = (info.name for info in pkgutil.iter_modules(package.__path__))
        return sorted(name for name in found if not name.startswith("_") and name not in shared)

    def load(self, name: str) -> ModuleType:
        """Import one entry. Raises: UnknownName with the nearest names."""
        if name not in self.names():
            raise unknown(self.kind, name, self.names())
        return import_module(f"{self.package}.{name}")

    def constants(self, name: str) -> dict[str, Any]:
        """Read the literals that an entry's file assigns at its top level, without importing the file.

        Raises: UnknownName with the nearest names.
        """
        if name not in self.names():
            raise unknown(self.kind, name, self.names())
        spec = find_spec(f"{self.package}.{name}")
        assert spec is not None and spec.origin is not None
        found: dict[str, Any] = {}
        for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if not isinstance(statement, ast.Assign):
                continue
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                continue  # computed at import
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = value
                elif isinstance(target, ast.Tuple):
                    names = [element.id for element in target.elts if isinstance(element, ast.Name)]
                    found.update(zip(names, value, strict=True))
        return found


VERBS = Registry("diffprobe.cli", "verb")
"""Verbs of the command line."""
FAMILIES = Registry("diffprobe.backbones.families", "family")
"""Families of backbones."""
DATASETS = Registry("diffprobe.shards.datasets", "data set")
"""Data sets that `diffprobe data build` makes."""
OBJECTIVES = Registry("diffprobe.generative.objectives", "training objective")
"""Training objectives of denoisers."""
REGULARIZERS = Registry("diffprobe.generative.regularizers", "class-contrast term")
"""Class-contrast terms of denoisers' training."""
CERTIFICATES = Registry("diffprobe.evaluation.certificates", "kind of certificate")
"""Kinds of methods that `diffprobe certify` scores."""
PROBE_KINDS = Registry("diffprobe.probes", "kind of probe")
"""Kinds of probes: a folder each."""
PROBE_TRAINING = Registry("diffprobe.training.kinds", "kind of probe")
"""How a run trains each kind of probe: a file each."""
METRICS = Registry("diffprobe.metrics", "metric")
"""Metrics of results; `diffprobe/metrics/__init__.py` documents what a file offers."""


def probes(kind: str) -> Registry:
    """Return the registry of the probes of one kind. Raises: UnknownName for a kind that does not exist."""
    return Registry(PROBE_KINDS.load(kind).__name__, f"probe of kind '{kind}'")
