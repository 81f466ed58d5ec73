"""A folder of modules as a catalogue: the file's name is the entry's name, imported only when asked for.

Files that begin with `_` are no entries, nor are those that the package names in `SHARED`: what its entries rest on.
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
        kind: what an entry is called in messages, for example "probe".
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
