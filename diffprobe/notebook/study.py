"""`Study`: your images, a backbone and what is read of it; in a few lines to features, probes and figures.

Every step composes the same configuration as the command line and runs the same functions; `Study.command` returns
the command that does the same in a shell.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.compose import load_run, setting_text
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.facts_html import facts_html
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.registry import DATASETS
from diffprobe.features.reader import FeatureStore
from diffprobe.notebook.finished_run import FinishedRun, open_run
from diffprobe.shards.index import INDEX_NAME, ShardSet
from diffprobe.shards.shard_names import build_command

if TYPE_CHECKING:
    from diffprobe.report.table import Table

SHARDS = "shards"
"""Folder below the folder of runs in which image folders are packed."""


class Study:
    """A set of images and the settings under which a backbone reads them.

        study = Study("photos", ["backbone=emoji-sd", "features=emoji"])
        study.extract()
        run = study.train("linear")
        run.heat_map()

    A folder of images (class subfolders, optional split folders) is packed into shards first, below `<output>/shards`,
    as by `diffprobe data build folder`; packed again, it is compared, not copied.

    Args:
        images: folder of images; or folder or index file of shards; or the name of a shipped set ("emoji").
        settings: as on the command line: "backbone=sd15", "features=sd", "features.timesteps=[100]",
            "experiment=NAME"; without them the presets of `diffprobe train`.
        table: of an image folder: CSV or JSONL with captions, classes and attributes of the images.
        group: of an image folder: attribute whose values stay in one split.
        val: of an image folder: share of the images that become split val.
        test: of an image folder: share of the images that become split test.
        quiet: print no progress.

    Attributes:
        settings: the settings, with those that name the images.
        shard_set: the packed images.
    Raises: ConfigError for settings that do not fit, and for `table`, `group`, `val`, `test` of images that are packed
        already; ShardError for a folder without usable images, or with other images than were packed before.
    """

    def __init__(
        self,
        images: Path | str,
        settings: Sequence[str] = (),
        *,
        table: Path | str | None = None,
        group: str | None = None,
        val: float | None = None,
        test: float | None = None,
        quiet: bool = False,
    ) -> None:
        _require_list(settings)
        given = [setting for setting in settings if setting.partition("=")[0] in ("data", "data.path")]
        if given:
            raise ConfigError(f"the images are named twice: {images} and {', '.join(given)}.", fix="remove the setting")
        self.quiet = quiet
        path = Path(images).expanduser()
        base = load_run(None, ["data=folder", *settings])  # refused before anything is packed
        packing = {"table": table, "group": group, "val": val, "test": test}
        if _is_image_folder(path):
            out = Path(base.output) / SHARDS / path.resolve().name
            self.shard_set = self._pack(path, out, None if table is None else Path(table), group, val, test)
            images = out
        else:
            idle = [name for name, value in packing.items() if value is not None]
            if idle:
                raise ConfigError(
                    f"{', '.join(idle)}: '{images}' is a set of shards; its splits and captions are fixed.",
                    fix="remove them, or name the folder of the images",
                )
            self.shard_set = ShardSet.load(str(images))
        self.settings = ("data=folder", f"data.path={setting_text(str(images))}", *settings)
        self._runs: dict[Path, None] = {}

    def config(self, probe: str | None = None, settings: Sequence[str] = ()) -> RunConfig:
        """Return the validated configuration of a run.

        Args:
            probe: name of a preset of `probe`: "linear", "topk", "mean_difference", ...; None for that of the settings.
            settings: settings of this run, on top of those of the study.
        Raises: ConfigError with every error.
        """
        return load_run(None, self._settings(probe, settings))

    def command(self, verb: str = "train", probe: str | None = None, settings: Sequence[str] = ()) -> str:
        """Return the command that does the same in a shell; `verb` is "extract" or "train"."""
        return shlex.join(["diffprobe", verb, *self._settings(probe, settings)])

    def extract(self, settings: Sequence[str] = ()) -> FeatureStore:
        """Return the feature store of the study; what is missing of it is extracted, and a full one opened.

        Args:
            settings: on top of those of the study, for example "control=random_weights".
        Raises: see `runs.extract.extract_run`; WeightsMissing for a backbone that is not at hand.
        """
        return self._extract(self.config(settings=settings))

    def train(self, probe: str = "linear", settings: Sequence[str] = ()) -> FinishedRun:
        """Extract what is missing, train a probe, evaluate it on val and test, and return the run.

        As in a shell: an interrupted run continues, a finished one is trained anew; `open_run` opens a finished one.

        Args:
            probe: name of a preset of `probe`: "linear", "topk", "mean_difference", ...
            settings: settings of this run: "probe.cell=mid_block@t100", "probe.targets=[animal]",
                "trainer.max_epochs=50", "control=raw_pixels", ...
        Raises: ConfigError, UnknownName; what extraction and training raise.
        """
        from diffprobe.core.memory import keep_freed_memory
        from diffprobe.runs.experiment import plan_training, train

        keep_freed_memory()  # before the first tensor is allocated
        _require_list(settings)
        if self.quiet:
            settings = [*settings, "trainer.enable_progress_bar=false"]
        config = self.config(probe, settings)
        plan_training(config)  # refused before features are extracted
        if config.features.source == "stored":
            self._extract(config)
        run = open_run(train(config).parent)
        self._runs[run.folder] = None
        return run

    def table(self, *, where: dict[str, object] | None = None, exploratory: bool = False) -> "Table":
        """Return the table of all runs that this object trained, with controls in their columns.

        Args:
            where: field -> value, to show fewer: {"metric": "accuracy"}.
            exploratory: whether many cells may be compared on test: where={"split": "test"}.
        Raises: ConfigError before any run is trained.
        """
        from diffprobe.runs.tables import build_table

        if not self._runs:
            raise ConfigError("this study has trained no run yet.", fix='study.train("linear")')
        return build_table(list(self._runs), where=where, exploratory=exploratory)

    def __repr__(self) -> str:
        return f"Study({self.shard_set.name}: {', '.join(self.settings[2:]) or 'the presets'})"

    def _repr_html_(self) -> str:
        counts = {name: self.shard_set.n_samples(name) for name in self.shard_set.splits()}
        config = self.config()
        return facts_html(
            f"Study of {self.shard_set.name}",
            {
                "images": ", ".join(f"{name} {n:,}" for name, n in counts.items()),
                "classes": _few(self.shard_set.classes),
                "attributes": _few(list(self.shard_set.attributes)),
                "backbone": config.backbone.path,
                "taps": ", ".join(config.features.taps),
                "timesteps": ", ".join(map(str, config.features.timesteps)),
                "in a shell": self.command(),
            },
        )

    def _settings(self, probe: str | None, settings: Sequence[str]) -> list[str]:
        _require_list(settings)
        kept = [one for one in self.settings if probe is None or one.partition("=")[0] != "probe"]
        return [*kept, *([] if probe is None else [f"probe={probe}"]), *settings]

    def _pack(
        self, images: Path, out: Path, table: Path | None, group: str | None, val: float | None, test: float | None
    ) -> ShardSet:
        build = DATASETS.load("folder").build
        with ProgressDisplay(shown=not self.quiet, transient=True) as display:
            packed: ShardSet = build(
                images, out, table=table, group=group, val=val, test=test,
                make_bar=lambda n: display.bar(n, "packing images", unit="images", keep=False), announce=self._say,
            )  # fmt: skip
        return packed

    def _extract(self, config: RunConfig) -> FeatureStore:
        from diffprobe.core.memory import keep_freed_memory
        from diffprobe.runs.experiment import extract

        keep_freed_memory()  # before the first tensor is allocated
        return extract(config, quiet=self.quiet)

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _require_list(settings: Sequence[str]) -> None:
    if isinstance(settings, str):
        raise ConfigError(f"settings is one text: {settings!r}.", fix=f"a list: [{settings!r}]")


def _is_image_folder(path: Path) -> bool:
    """Return whether a folder has images, and neither an index nor shards: its images have to be packed."""
    return path.is_dir() and not (path / INDEX_NAME).is_file() and build_command(path) is not None


def _few(names: Sequence[str], n: int = 10) -> str:
    return ", ".join(names[:n]) + (f" ... ({len(names):,})" if len(names) > n else "")
