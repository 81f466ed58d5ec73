"""Bring the results of W&B runs into a folder, from which tables are made as from any other.

Every run puts a copy of its `result.json` into the files of its W&B run (`training/wandb_run.py`). They are read here
from the server, or from the folders that offline runs leave; the layout is that of `runs`.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from diffprobe.config import search_path
from diffprobe.config.compose import compose
from diffprobe.config.schema import LoggerConfig
from diffprobe.core.atomic_file import atomic_folder
from diffprobe.core.cache_folder import cache_root
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, DiffprobeError, RunFailed, SchemaError, unknown
from diffprobe.core.json_file import MAX_BYTES
from diffprobe.core.result import MEMBERS, RESULT_FILE, RunResult, read_result
from diffprobe.core.terminal import one_line
from diffprobe.launch.wandb_sync import offline_runs
from diffprobe.report.table_spec import find_spec, has_spec, load_specs
from diffprobe.training.wandb_run import SENT_RESULT

FINISHED = "finished"
"""W&B's state of a run that has ended well."""
_PART = re.compile(r"[\w@=,+-][\w@=.,+-]*")
"""A part of a path that comes from the server."""


class RemoteFile(Protocol):
    """A file of a W&B run, as `wandb.apis.public.File` has it."""

    @property
    def name(self) -> str:
        """Name within the run."""

    @property
    def size(self) -> int:
        """Bytes."""

    def download(self, root: str = ".", replace: bool = False) -> object:
        """Write the file below a folder."""


class RemoteRun(Protocol):
    """A run on the server, as `wandb.apis.public.Run` has it."""

    @property
    def id(self) -> str:
        """Its id in the project."""

    @property
    def name(self) -> str | None:
        """Its display name."""

    @property
    def state(self) -> str:
        """One of running, finished, crashed, failed, killed, preempted, preempting."""

    def files(self, names: list[str] | None = None, pattern: str | None = None) -> Iterable[RemoteFile]:
        """List its files."""


class ResultApi(Protocol):
    """What is used of `wandb.Api`."""

    @property
    def default_entity(self) -> str | None:
        """Team or user of the login."""

    def runs(
        self, path: str | None = None, filters: dict[str, object] | None = None, order: str = "+created_at"
    ) -> Iterable[RemoteRun]:
        """List the runs of a project."""


@dataclass(frozen=True, kw_only=True)
class WandbPlace:
    """Where the runs of some experiments are on W&B."""

    project: str
    """Project."""
    entity: str | None
    """Team or user; None for that of the login."""
    groups: tuple[str, ...]
    """Groups of the runs."""


@dataclass(frozen=True, kw_only=True)
class FetchedResults:
    """Results in a folder, and what is not among them."""

    folder: Path
    """Folder with a `result.json` per run, laid out as `runs`."""
    n_runs: int
    """Number of W&B runs that were read."""
    left_out: tuple[str, ...]
    """A line per W&B run that is not read, with its reason."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The files of one W&B run, on this machine."""

    id: str
    where: str
    folder: Path
    result: RunResult


def place_of_runs(
    name: str | None, *, project: str | None = None, entity: str | None = None, groups: Sequence[str] = ()
) -> WandbPlace:
    """Return where the runs of a table or an experiment are: in the groups of its experiments, by their `logger`.

    Args:
        name: a table, all experiments that its filter names; or an experiment. None with `groups`.
        project, entity, groups: what is known; the rest is read in the experiments.

    Raises: ConfigError for a name that is neither, and for experiments whose runs are in several projects.
    """
    names = [] if name is None or (groups and project) else _experiments(name)
    blocks = [LoggerConfig(**compose(one).tree.get("logger") or {}) for one in names]
    for key, given in (("project", project), ("entity", entity)):
        found = sorted({str(getattr(block, key)) for block in blocks})
        if given is None and len(found) > 1:
            raise ConfigError(
                f"the runs of '{name}' are in several places: logger.{key} is {', '.join(found)}.", fix=f"--{key} NAME"
            )
    own = [block.group or one for block, one in zip(blocks, names, strict=True)]
    first = blocks[0] if blocks else LoggerConfig()
    return WandbPlace(
        project=project or first.project,
        entity=entity or first.entity or os.environ.get("WANDB_ENTITY") or None,
        groups=tuple(groups) or tuple(dict.fromkeys(own)),
    )


def _experiments(name: str) -> list[str]:
    """Return the experiments of a table, or the one of this name."""
    known = search_path.experiments()
    if not has_spec(name):
        if name not in known:
            tables = {one.rpartition("/")[0] for one in known if has_spec(one.rpartition("/")[0])}
            raise unknown("table or experiment", name, [*known, *tables], ConfigError)
        return [name]
    wanted: list[str] = []
    for spec in load_specs(find_spec(name)):
        asked = spec.filter.get("experiment", name)
        wanted += map(str, asked if isinstance(asked, (list, tuple)) else [asked])
    found = [one for one in known if any(one == of or one.startswith(f"{of}/") for of in wanted)]
    if not found:
        raise ConfigError(
            f"table '{name}': no file below experiments/ is one of its experiments ({', '.join(wanted)}), "
            "so project and groups are not known.",
            fix="--project NAME --group GROUP",
        )
    return found


def connect() -> ResultApi:
    """Return W&B's API with the key of the login.

    Raises: RunFailed without a key, or if the server does not answer or does not accept it.
    """
    import wandb

    from diffprobe.training.loggers import logged_in

    if not logged_in():
        raise RunFailed(
            "results of W&B runs are read from its server, and there is no key for it"
            " (neither WANDB_API_KEY nor a netrc entry).",
            fix="wandb login; or of offline runs: --offline-dir DIR",
        )
    with explained("connect to W&B"):
        return cast(ResultApi, wandb.Api())


def fetch_results(
    api: ResultApi,
    place: WandbPlace,
    *,
    without: Sequence[str] = (),
    folder: Path | None = None,
) -> FetchedResults:
    """Download the results of the finished runs of some groups. Of a run that was trained again, the newest is taken.

    Args:
        api: the server, `wandb.Api()`.
        place: project and groups, see `place_of_runs`.
        without: ids of runs that are left out.
        folder: where the results go, replaced if it exists; None for one below the cache folder.

    Raises: RunFailed if the server cannot be reached, does not have the project, or has no finished run of the groups;
        for finished runs without a result, and for ids in `without` that are not there; SchemaError for results that
        cannot be read.
    """
    fix = "--project NAME --entity NAME; the projects of a login are on its page of W&B"
    groups = place.groups
    with explained("ask for the team of the login"):
        entity = place.entity or api.default_entity
    if not entity:
        raise RunFailed("W&B names no default team or user of this login.", fix="--entity NAME")
    path = f"{entity}/{place.project}"
    filters: dict[str, object] = {"group": {"$in": list(groups)}}
    with explained(f"list the runs of '{path}'", missing=RunFailed(f"W&B has no project '{path}'.", fix=fix)):
        listed = list({run.id: run for run in api.runs(path, filters=filters, order="+created_at")}.values())
    if not listed:
        raise RunFailed(
            f"project '{path}' of W&B has no run in the group{'s' if len(groups) > 1 else ''} {', '.join(groups)}.",
            fix="--group NAME, --project NAME or --entity NAME; offline runs are sent by: diffprobe wandb sync",
        )
    _require_known(without, [run.id for run in listed])
    left_out = [f"{_label(run)}: --without" for run in listed if run.id in without]
    left_out += [
        f"{_label(run)}: {run.state}, not finished" for run in listed if run.state != FINISHED and run.id not in without
    ]
    wanted = [run for run in listed if run.state == FINISHED and run.id not in without]
    if not wanted:
        raise RunFailed(
            f"none of the {len(listed)} runs of '{path}' in {', '.join(groups)} is finished.", *left_out,
            fix="wait for them: diffprobe jobs",
        )  # fmt: skip
    folder = folder or cache_root() / "wandb" / digest_json([entity, place.project, sorted(groups)])[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        downloads = temporary / ".downloads"  # a name that no experiment has
        found = _read(((run.id, _label(run), _download(run, downloads / f"{i}")) for i, run in enumerate(wanted)))
        left_out += _lay_out(found, temporary)
        shutil.rmtree(downloads)
    return FetchedResults(folder=folder, n_runs=len(found), left_out=tuple(left_out))


def offline_results(root: Path | str, *, without: Sequence[str] = (), folder: Path | None = None) -> FetchedResults:
    """Collect the results that offline W&B runs below a folder hold, also those that were sent.

    A run that was interrupted leaves several folders of W&B, of which the last has the result.

    Args:
        root: folder with offline runs at any depth.
        without, folder: see `fetch_results`.

    Raises: RunFailed if there is no offline run, or none with a result; SchemaError for results that cannot be read.
    """
    paths = offline_runs(root, include_synced=True)
    if not paths:
        raise RunFailed(
            f"no offline run of W&B is below '{root}'.",
            fix="the folder of runs with logger.mode=offline: --offline-dir DIR",
        )
    by_id: dict[str, Path | None] = {}
    for path in paths:
        files = path / "files"
        by_id[_id_of(path)] = files if (files / SENT_RESULT).exists() else by_id.get(_id_of(path))
    _require_known(without, list(by_id))
    left_out = [f"{id}: --without" for id in by_id if id in without]
    left_out += [
        f"{id}: no {SENT_RESULT}, not finished" for id, files in by_id.items() if not files and id not in without
    ]
    wanted = {id: files for id, files in by_id.items() if files and id not in without}
    if not wanted:
        raise RunFailed(f"none of the {len(by_id)} offline runs below '{root}' has a result.", *left_out)
    folder = folder or cache_root() / "wandb" / digest_json([str(Path(root).resolve())])[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        found = _read((id, f"{id} in '{files.parent}'", files) for id, files in wanted.items())
        left_out += _lay_out(found, temporary)
    return FetchedResults(folder=folder, n_runs=len(found), left_out=tuple(left_out))


def _id_of(path: Path) -> str:
    """Return the id in the name of an offline run's folder: offline-run-DATE_TIME-ID."""
    return path.name.removeprefix("offline-run-").partition("-")[2]


def _label(run: RemoteRun) -> str:
    return one_line(f"{run.id} ({run.name})" if run.name else run.id)


def _require_known(without: Sequence[str], ids: Sequence[str]) -> None:
    unknown = [id for id in without if id not in ids]
    if unknown:
        raise RunFailed(f"--without {', '.join(unknown)}: no such run.", f"runs: {', '.join(ids)}")


def _download(run: RemoteRun, folder: Path) -> Path:
    """Download the result files of a run. Returns: `folder`, without one if the run has none."""
    folder.mkdir(parents=True)
    with explained(f"download the results of run {_label(run)}"):
        for file in run.files(pattern=f"%{SENT_RESULT}"):
            if not _is_result(file.name):
                continue
            if file.size > MAX_BYTES:
                raise SchemaError(
                    f"{file.name} of W&B run {_label(run)} has {file.size:,} bytes, more than {MAX_BYTES:,}.",
                    fix=f"--without {run.id}",
                )
            opened = file.download(root=str(folder), replace=True)
            close = getattr(opened, "close", None)
            if close is not None:
                close()
    return folder


def _is_result(name: str) -> bool:
    """Return whether a name is that of the result of a run or of a member; other names are not touched."""
    parts = name.split("/")
    member = len(parts) == 3 and parts[0] == MEMBERS and parts[2] == SENT_RESULT and _PART.fullmatch(parts[1])
    return name == SENT_RESULT or bool(member)


def _read(runs: Iterable[tuple[str, str, Path]]) -> list[_Found]:
    """Read the result of each run. Raises: RunFailed with all that have none; SchemaError with all that are damaged."""
    found, missing, faults = [], {}, {}
    for id, where, folder in runs:
        path = folder / SENT_RESULT
        if not path.is_file():
            missing[id] = where
            continue
        try:
            result = read_result(path)
            for name in sorted({*_members(result), *(one.name for one in folder.glob(f"{MEMBERS}/*"))}):
                read_result(folder / MEMBERS / name / SENT_RESULT)
        except FileNotFoundError as error:
            faults[id] = f"{where}: the result of a member is missing: {error.filename}"
        except DiffprobeError as error:
            faults[id] = f"{where}: {error.what}"
        else:
            found.append(_Found(id=id, where=where, folder=folder, result=result))
    if faults:
        raise SchemaError(
            f"the results of {len(faults)} W&B run(s) cannot be read.", *faults.values(), fix=_leave_out(faults)
        )
    if missing:
        raise RunFailed(
            f"{len(missing)} finished W&B run(s) have no {SENT_RESULT}.", *missing.values(),
            "runs of diffprobe before 0.2, and runs of other programs, have none",
            fix=f"train them again with logger=wandb; or {_leave_out(missing)}",
        )  # fmt: skip
    return found


def _members(result: RunResult) -> set[str]:
    """Return the names of the members of a run, by the files that it wrote."""
    return {name.split("/")[1] for name in result.artifacts if name.startswith(f"{MEMBERS}/")}


def _leave_out(ids: Iterable[str]) -> str:
    return " ".join(f"--without {id}" for id in ids)


def _lay_out(found: Sequence[_Found], root: Path) -> list[str]:
    """Copy results to EXPERIMENT/RUN below a folder; of runs with equal names, the newest. Returns: those left out."""
    newest: dict[tuple[str, str], _Found] = {}
    replaced = []
    for one in found:
        key = one.result.experiment, one.result.run
        before = newest.get(key)
        if before is not None:
            older = before if before.result.started <= one.result.started else one
            one = one if older is before else before
            replaced.append(f"{older.where}: run {older.result.run} was trained again as {one.id}")
        newest[key] = one
    for (experiment, run), one in newest.items():
        parts = [*filter(None, experiment.split("/")), run]
        names = parts if all(_PART.fullmatch(part) for part in parts) else [digest_json([experiment, run])[:12]]
        target = root.joinpath(*names)
        for path in [one.folder / SENT_RESULT, *one.folder.glob(f"{MEMBERS}/*/{SENT_RESULT}")]:
            place = (target / path.relative_to(one.folder)).with_name(RESULT_FILE)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return replaced


@contextmanager
def explained(what: str, *, missing: RunFailed | None = None) -> Iterator[None]:
    """Turn what W&B raises into RunFailed: the project that it does not have, or a server that does not answer.

    Args:
        what: what was tried, after "could not".
        missing: the error for a project that is not there.
    """
    from wandb.errors import AuthenticationError

    try:
        yield
    except AuthenticationError as error:  # also raised where the server does not answer
        raise RunFailed(
            f"could not {what}: {error}",
            fix="wandb login --relogin; where there is no network: --offline-dir DIR for offline runs",
        ) from error
    except DiffprobeError:
        raise
    except Exception as error:
        of_wandb = type(error).__module__.partition(".")[0] == "wandb"  # some errors of its service have no base class
        if not of_wandb and not isinstance(error, (ValueError, OSError)):
            raise
        said = f"{error}"
        if missing is not None and re.search("could not find project|not found|404|permission denied", said, re.I):
            missing.details = (f"it said: {said}",)
            raise missing from error
        raise RunFailed(
            f"could not {what}: {said}",
            fix="where there is no network: --offline-dir DIR reads offline runs",
        ) from error
