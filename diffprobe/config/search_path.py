"""The folders of presets and experiment files. A root is a folder that contains ``configs/`` or ``experiments/``."""

import os
from pathlib import Path

from diffprobe.core.errors import ConfigError

VARIABLE = "DIFFPROBE_CONFIGS"
INSTEAD = "in place of the shipped file of that name"
EXPERIMENTS = "experiments"
"""Folder of the experiment files in a root."""
BASE = "base"
"""Folder of the base configurations; not a group of choices."""

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """Return the root that comes with diffprobe: inside the wheel, or the repository of a source checkout.

    Raises: ConfigError if neither contains the presets (a damaged installation).
    """
    for root in (_PACKAGE / "_presets", _PACKAGE.parent):
        if (root / "configs" / BASE / "run.yaml").is_file():
            return root
    raise ConfigError(
        "the presets of diffprobe are missing.",
        f"looked for: configs/{BASE}/run.yaml in {_PACKAGE / '_presets'} and {_PACKAGE.parent}",
        fix="install diffprobe again",
    )


def roots() -> list[Path]:
    """List the roots by precedence: those in $DIFFPROBE_CONFIGS, the working folder, the shipped root.

    $DIFFPROBE_CONFIGS may name several folders, separated as in $PATH.

    Raises: ConfigError if $DIFFPROBE_CONFIGS names a folder that is not a root.
    """
    found: list[Path] = []
    for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        root = Path(entry).expanduser().resolve()
        if not any((root / part).is_dir() for part in ("configs", "experiments")):
            raise ConfigError(
                f"${VARIABLE} names '{entry}', which contains neither configs/ nor experiments/.",
                fix=f"set {VARIABLE} to the folder that contains them",
            )
        found.append(root)
    found += [Path.cwd().resolve(), shipped_root()]
    return list(dict.fromkeys(found))


def folders() -> list[Path]:
    """List the folders that Hydra searches: each root's ``configs``, then each root's ``experiments``."""
    places = roots()
    found = [root / part for part in ("configs", "experiments") for root in places]
    return [folder for folder in found if folder.is_dir()]


def find(name: str, searched: list[Path] | None = None) -> Path | None:
    """Return the first file ``<folder>/<name>.yaml`` in the given folders (`folders()` if None), None if not found."""
    for folder in folders() if searched is None else searched:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def groups() -> dict[str, list[str]]:
    """List the groups of presets with their choices, for example ``{"probe": ["linear", "topk"], ...}``."""
    found: dict[str, set[str]] = {}
    for root in roots():
        for path in (root / "configs").glob("*/*.yaml"):
            if path.parent.name != BASE:
                found.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(choices) for name, choices in sorted(found.items())}


def experiments() -> dict[str, Path]:
    """List the experiment files: name (path below ``experiments`` without suffix) -> file.

    ``table.yaml`` files describe tables, and files that begin with `_` are shared by several experiments: both are left
    out.
    """
    found: dict[str, Path] = {}
    for root in roots():
        folder = root / "experiments"
        for path in sorted(folder.rglob("*.yaml")):
            if path.name != "table.yaml" and not path.name.startswith("_"):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def display(path: Path) -> str:
    """Format a path for messages: relative to the working folder or its root where possible.

    A file that replaces the shipped file of its name is marked, since a folder `configs` may serve another program.
    """
    for base in (Path.cwd().resolve(), *roots()):
        if path.is_relative_to(base):
            shown, shipped = path.relative_to(base).as_posix(), shipped_root() / path.relative_to(base)
            return f"{shown} ({INSTEAD})" if shipped != path and shipped.is_file() else shown
    return str(path)
