"""Registries: the modules behind the names in configs, on the command line and in saved files.

A registry is a package whose files are its entries: the name of the file is the name of the entry, and a file is
imported when its entry is loaded. To add an entry, add a file. Files that begin with `_`, and those that the package
lists in `SHARED` (code shared by its entries), are not entries.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from diffprobe.core.errors import ConfigError, unknown


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


VERBS = Registry("diffprobe.cli", "verb")
"""Verbs of the command line."""
FAMILIES = Registry("diffprobe.backbones.families", "family")
"""Families of backbones."""
DATASETS = Registry("diffprobe.shards.datasets", "data set")
"""Data sets that `diffprobe data build` makes."""
OBJECTIVES = Registry("diffprobe.generative.objectives", "training objective")
"""Training objectives of denoisers."""
PROBE_KINDS = Registry("diffprobe.probes", "kind of probe")
"""Kinds of probes: a folder each."""
PROBE_TRAINING = Registry("diffprobe.training.kinds", "kind of probe")
"""How a run trains each kind of probe: a file each."""
METRICS = Registry("diffprobe.metrics", "metric")
"""Metrics, and code that they share: a file is a metric of the kind of probe that its `FOR` names."""


def probes(kind: str) -> Registry:
    """Return the registry of the probes of one kind. Raises: UnknownName for a kind that does not exist."""
    return Registry(PROBE_KINDS.load(kind).__name__, f"probe of kind '{kind}'")


def load_metrics(kind: str, names: Sequence[str]) -> list[ModuleType]:
    """Import some metrics of one kind of probe. Only the files named are imported.

    Raises: UnknownName, with the nearest, for a name that is not a metric of this kind; ConfigError for a
        duplicate.
    """
    found = []
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"metric '{name}' is given twice.")
        file = METRICS.load(name) if name in METRICS.names() else None
        if file is None or getattr(file, "FOR", None) != kind:
            allowed = [other for other in METRICS.names() if getattr(METRICS.load(other), "FOR", None) == kind]
            raise unknown(f"metric of a probe of kind '{kind}':", name, allowed)
        found.append(file)
    return found
