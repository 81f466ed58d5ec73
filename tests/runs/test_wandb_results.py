"""Results of W&B runs: a server that has the same methods as W&B's own API, and offline folders."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from wandb.apis.public import Api, File, Run
from wandb.errors import AuthenticationError, CommError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, DiffprobeError, RunFailed, SchemaError
from diffprobe.core.result import read_result, write_result
from diffprobe.report.collect import collect
from diffprobe.runs import wandb_results
from diffprobe.runs.wandb_results import WandbPlace, connect, fetch_results, offline_results, place_of_runs
from diffprobe.training.wandb_run import SENT_RESULT
from tests.training.test_loggers import logged_out  # noqa: F401

REPORT = Path(__file__).parents[1] / "report"
PLACE = WandbPlace(project="p", entity="team", groups=("toy/classifier",))


class FakeFile:
    def __init__(self, root: Path, name: str, size: int | None = None) -> None:
        self.root, self.name = root, name
        self.size = (root / name).stat().st_size if size is None else size

    def download(self, root: str = ".", replace: bool = False, exist_ok: bool = False, api=None):
        target = Path(root) / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / self.name, target)
        return open(target)


class FakeRun:
    def __init__(self, root: Path, state: str = "finished") -> None:
        self.root, self.id, self.name, self.state = root, root.name, f"toy/{root.name}", state

    def files(self, names=None, pattern=None, per_page=50):
        assert pattern == f"%{SENT_RESULT}"
        found = [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*.json"))]
        return [FakeFile(self.root, name) for name in found if name.endswith(SENT_RESULT)]


class FakeApi:
    """A project `team/p`; its runs are the folders below `root`."""

    default_entity = "team"

    def __init__(self, root: Path, **states: str) -> None:
        self.found = [FakeRun(path, states.get(path.name, "finished")) for path in sorted(root.iterdir())]
        self.asked: list = []

    def runs(self, path=None, filters=None, order="+created_at", per_page=50, include_sweeps=False, lazy=True):
        self.asked.append((path, filters))
        if path != "team/p":
            raise ValueError(f"Could not find project {path}")
        return iter(self.found)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The files that three finished runs have sent."""
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "cache"))
    root = Path(shutil.copytree(REPORT / "results", tmp_path / "server"))
    for path in root.rglob("result.json"):
        path.rename(path.with_name(SENT_RESULT))
    return root


@pytest.mark.parametrize(
    ("fake", "real"), [(FakeApi.runs, Api.runs), (FakeRun.files, Run.files), (FakeFile.download, File.download)]
)
def test_the_methods_of_the_fake_are_those_of_the_installed_wandb(fake, real):
    names = [list(inspect.signature(one).parameters) for one in (fake, real)]
    assert names[0] == names[1]
    defaults = [[p.default for p in inspect.signature(one).parameters.values()] for one in (fake, real)]
    assert defaults[0] == defaults[1]


def test_what_is_read_of_runs_and_files_is_there():
    assert isinstance(Api.default_entity, property)
    for cls, names in ((Run, ("id", "name", "state")), (File, ("size",))):
        assert all(isinstance(inspect.getattr_static(cls, name), property) for name in names)
    assert File(None, {"name": SENT_RESULT, "sizeBytes": "7"}).name == SENT_RESULT


def test_the_folder_has_the_results_laid_out_as_runs(server):
    api = FakeApi(server)
    found = fetch_results(api, PLACE)
    assert api.asked == [("team/p", {"group": {"$in": ["toy/classifier"]}})]
    assert (found.n_runs, found.left_out) == (3, ())
    by_name = {result.run: result for result in collect(REPORT / "results")}
    assert {result.run: result for result in collect(found.folder)} == by_name
    for result in by_name.values():
        assert (found.folder / result.experiment / result.run / "result.json").is_file()
    assert fetch_results(FakeApi(server), PLACE).folder == found.folder  # replaced, not doubled
    assert len(collect(found.folder)) == 3 and not list(found.folder.rglob("downloads"))


def test_members_of_a_grid_come_along_and_other_files_do_not(server):
    for name in (
        f"members/k=1,cell/{SENT_RESULT}",
        f"elsewhere/{SENT_RESULT}",
        f"not{SENT_RESULT}",
        f"members/../{SENT_RESULT}",
    ):
        path = server / "seed0" / name.replace("..", "x/y")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(replace(read_result(server / "seed1" / SENT_RESULT), run="member"), path)
    found = fetch_results(FakeApi(server), PLACE)
    assert sorted(str(path.parent.name) for path in found.folder.rglob("result.json") if "members" in path.parts) == [
        "k=1,cell"
    ]
    assert len(collect(found.folder)) == 4


def test_a_member_without_its_result_is_named(server):
    whole = read_result(server / "seed0" / SENT_RESULT)
    write_result(replace(whole, artifacts={"members/k=2/probes/x": "1" * 64}), server / "seed0" / SENT_RESULT)
    with pytest.raises(SchemaError, match=r"seed0 (.|\n)*members/k=2/diffprobe-result.json(.|\n)*--without seed0"):
        fetch_results(FakeApi(server), PLACE)


def test_a_run_that_was_trained_again_counts_once_the_newest(server):
    old = read_result(server / "seed0" / SENT_RESULT)
    write_result(replace(old, started="2020-01-01T00:00:00+00:00"), _made(server / "again" / SENT_RESULT))
    found = fetch_results(FakeApi(server), PLACE)
    (line,) = found.left_out
    assert line.startswith("again (toy/again)") and "trained again as seed0" in line
    assert {result.started for result in collect(found.folder) if result.run == old.run} == {old.started}


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def test_unfinished_runs_are_named(server):
    found = fetch_results(FakeApi(server, seed1="running"), PLACE, without=["pixels"])
    assert found.n_runs == 1
    assert found.left_out == ("pixels (toy/pixels): --without", "seed1 (toy/seed1): running, not finished")
    with pytest.raises(RunFailed, match=r"(?s)none of the 3 runs.*seed0 .*crashed"):
        fetch_results(FakeApi(server, seed0="crashed", seed1="running", pixels="failed"), PLACE)
    with pytest.raises(RunFailed, match=r"--without nobody(.|\n)*seed0"):
        fetch_results(FakeApi(server), PLACE, without=["nobody"])


def test_finished_runs_without_a_result_are_all_named_and_nothing_is_kept(server):
    (server / "seed0" / SENT_RESULT).unlink()
    (server / "pixels" / SENT_RESULT).unlink()
    with pytest.raises(
        RunFailed, match=r"(?s)^2 finished.*pixels \(toy/pixels\).*seed0.*--without pixels --without seed0"
    ):
        fetch_results(FakeApi(server), PLACE)
    assert not list((server.parent / "cache").rglob("result.json"))
    assert fetch_results(FakeApi(server), PLACE, without=["pixels", "seed0"]).n_runs == 1


def test_damaged_results_are_named_with_their_run(server):
    path = server / "seed0" / SENT_RESULT
    tree = json.loads(path.read_text())
    tree["metrics"][0]["value"] = 1.0
    path.write_text(json.dumps(tree))
    with pytest.raises(SchemaError, match=r"(?s)seed0 \(toy/seed0\).*--without seed0"):
        fetch_results(FakeApi(server), PLACE)
    (server / "seed1" / SENT_RESULT).write_text("<html>")
    with pytest.raises(SchemaError, match=r"(?s)of 2 W&B.*seed0.*seed1"):
        fetch_results(FakeApi(server), PLACE)


def test_a_file_of_absurd_size_is_not_downloaded(server, monkeypatch):
    monkeypatch.setattr(wandb_results, "MAX_BYTES", 10)
    monkeypatch.setattr(FakeFile, "download", None)
    with pytest.raises(SchemaError, match=r"pixels.* more than 10"):
        fetch_results(FakeApi(server), PLACE)


class Failing(FakeApi):
    def __init__(self, error: Exception, found: int = 0) -> None:
        self.error, self.found = error, []

    def runs(self, path=None, **more):
        raise self.error


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (Failing(ValueError("Could not find project p")), r"no project 'team/p'(.|\n)*--project"),
        (Failing(CommError("HTTP 404: project not found")), r"no project 'team/p'"),
        (Failing(CommError("connection refused")), r"connection refused(.|\n)*--offline-dir"),
        (Failing(WandbApiFailedError("Unknown operation")), r"Unknown operation(.|\n)*--offline-dir"),
        (Failing(TimeoutError("timed out")), r"timed out(.|\n)*--offline-dir"),
        (Failing(AuthenticationError("HTTP 401")), r"HTTP 401(.|\n)*wandb login"),
    ],
)
def test_what_the_server_refuses_says_what_to_do(api, said):
    with pytest.raises(RunFailed, match=said):
        fetch_results(api, PLACE)


def test_no_runs_and_no_team(server):
    api = FakeApi(server)
    api.found = []
    with pytest.raises(RunFailed, match=r"'team/p'(.|\n)*toy/classifier(.|\n)*diffprobe wandb sync"):
        fetch_results(api, PLACE)
    api.default_entity = None
    with pytest.raises(RunFailed, match="--entity NAME"):
        fetch_results(api, replace(PLACE, entity=None))


def test_a_connection_that_breaks_in_a_download_names_the_run(server, monkeypatch):
    def broken(self, *rest, **more):
        raise CommError("reset by peer")

    monkeypatch.setattr(FakeFile, "download", broken)
    with pytest.raises(RunFailed, match="pixels.*reset by peer"):
        fetch_results(FakeApi(server), PLACE)


@pytest.mark.usefixtures("logged_out")
def test_without_a_key_the_login_is_named():
    with pytest.raises(RunFailed, match="(?s)WANDB_API_KEY.*wandb login.*--offline-dir"):
        connect()


@pytest.mark.slow
def test_groups_are_the_experiments_of_a_table(monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    assert place_of_runs("emoji/sae") == WandbPlace(project="diffprobe", entity=None, groups=("emoji/sae",))
    found = place_of_runs("emoji/sae_table", entity="us")
    assert found.entity == "us" and "emoji/sae_table/topk" in found.groups
    assert place_of_runs(None, project="p", groups=["g"]) == WandbPlace(project="p", entity=None, groups=("g",))
    with pytest.raises(ConfigError, match="emoji/seo(.|\n)*emoji/sae"):
        place_of_runs("emoji/seo")


def test_the_logger_of_experiments_names_project_and_group(tmp_path, monkeypatch):
    folder = tmp_path / "experiments/mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, project in (("a", "one"), ("b", "two")):
        (folder / f"{name}.yaml").write_text(
            f"defaults: [{{override /logger: wandb}}]\nlogger: {{project: {project}, entity: us, group: g-{name}}}\n"
        )
    table = (REPORT / "table.yaml").read_text().replace("experiment: toy", "experiment: mine")
    (folder / "table.yaml").write_text(table)
    assert place_of_runs("mine/a") == WandbPlace(project="one", entity="us", groups=("g-a",))
    assert place_of_runs("mine", project="one").groups == ("g-a", "g-b")
    with pytest.raises(ConfigError, match="logger.project is one, two(.|\n)*--project"):
        place_of_runs("mine")


def offline(root: Path, name: str, source: Path | None) -> Path:
    folder = root / "runs" / name / f"wandb/offline-run-20261127_1300{len(list(root.rglob('offline*'))):02}-{name}"
    (folder / "files").mkdir(parents=True)
    (folder / f"run-{name}.wandb").write_bytes(b":W&B")
    if source:
        shutil.copy(source, folder / "files" / SENT_RESULT)
    return folder


def test_offline_runs_are_read_also_over_restarts_and_after_they_were_sent(server, tmp_path):
    offline(tmp_path, "seed0", None)  # killed
    folder = offline(tmp_path, "seed0", server / "seed0" / SENT_RESULT)
    (folder / "run-seed0.wandb.synced").touch()
    offline(tmp_path, "seed1", server / "seed1" / SENT_RESULT)
    offline(tmp_path, "open", None)
    found = offline_results(tmp_path / "runs")
    assert found.n_runs == 2 and found.left_out == (f"open: no {SENT_RESULT}, not finished",)
    assert offline_results(tmp_path / "runs", without=["seed1", "open"]).n_runs == 1
    with pytest.raises(RunFailed, match="none of the 3 offline runs"):
        offline_results(tmp_path / "runs", without=["seed0", "seed1"])
    with pytest.raises(RunFailed, match="no offline run"):
        offline_results(server)


def test_the_table_from_wandb_is_that_from_the_folder(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments/toy").mkdir(parents=True)
    shutil.copy(REPORT / "table.yaml", tmp_path / "experiments/toy/table.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_results, "connect", lambda: FakeApi(server))
    assert main(["table", "toy", "--from", "wandb", "--project", "p", "--group", "toy/classifier"]) == 0
    out, err = capsys.readouterr()
    assert out == (REPORT / "golden/table.md").read_text() and "results of 3 runs" in err
    assert main(["table", "toy", "--from", "wandb"]) == 2
    assert "--project NAME --group GROUP" in capsys.readouterr().err
    for name in ("seed0", "seed1", "pixels"):
        offline(tmp_path, name, server / name / SENT_RESULT)
    assert main(["table", "toy", "--from", "wandb", "--offline-dir", "runs"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["toy", "--project", "p"], "--project without --from wandb"),
        (["toy", "--from", "wandb", "--results", "runs"], "--results"),
        (["--from", "wandb"], "--group"),
        (["a", "b", "--from", "wandb"], "one table or experiment"),
        (["docs", "--from", "wandb", "--offline-dir", "runs"], "'docs' is a folder"),
        (["toy", "--from", "wandb", "--offline-dir", "x", "--group", "g"], "--group with --offline-dir"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words, said, capsys):
    assert main(["table", *words]) == 2
    assert said in capsys.readouterr().err
    assert issubclass(ConfigError, DiffprobeError)
