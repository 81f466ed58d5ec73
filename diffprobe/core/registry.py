"""Registries: the modules behind the names in configs, on the command line and in saved files.

A registry is a package whose files are its entries: the name of the file is the name of the entry, and a file is
imported when its entry is loaded. To add an entry, add a file. Files that begin with `_`, and those that the package
lists in `SHARED` (code shared by its entries), are not entries.
"""

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

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


VERBS = Registry("diffprobe.cli", "verb")
"""Verbs of the command line."""
FAMILIES = Registry("diffprobe.backbones.families", "family")
"""Families of backbones."""
DATASETS = Registry("diffprobe.shards.datasets", "data set")
"""Data sets that `diffprobe data build` creates."""
PROBE_KINDS = Registry("diffprobe.probes", "kind of probe")
"""Kinds of probes: one folder per kind."""


def probes(kind: str) -> Registry:
    """Return the registry of the probes of one kind. Raises: UnknownName for a kind that does not exist."""
    return Registry(PROBE_KINDS.load(kind).__name__, f"probe of kind '{kind}'")
