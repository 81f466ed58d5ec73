"""What Weights & Biases got is read from the offline run file: a LevelDB log of protobuf records."""

import json
import struct
import sys
import time
from types import SimpleNamespace

import pytest
import wandb

from diffprobe.config.schema import LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.probes.classifier.linear import Config
from diffprobe.training import loggers
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.trainer import make_trainer, quiet

BLOCK = 32768


def read_records(path):
    """Yield the records of a `.wandb` file: a 7-byte header, then blocks of (crc32, length, type, payload)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return  # still being written
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished_records(path, *, seconds=60):
    """Return the records of a finished run. W&B writes them in a process of its own: its last one is awaited."""
    end = time.monotonic() + seconds
    while True:
        records = list(read_records(path)) if path.stat().st_size else []
        if any(record.HasField("exit") for record in records) or time.monotonic() > end:
            return records
        time.sleep(0.2)


def read_run(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    run, config, summary, history = None, {}, {}, []
    for record in finished_records(path):
        if record.HasField("run"):
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("config"):
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        if record.HasField("summary"):
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            history.append(row)
    return run, config, summary, history


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mode_of(logged_out):
    """Judge a mode as a new process would: W&B reads its settings once."""

    def judge(mode="auto"):
        wandb.teardown()
        return loggers.wandb_mode(LoggerConfig(kind="wandb", mode=mode))

    yield judge
    wandb.teardown()


KEY = "0123456789" * 4


def test_login_is_found_in_key_or_netrc(mode_of, monkeypatch, tmp_path):
    assert mode_of() == mode_of("offline") == "offline"
    with pytest.raises(ConfigError, match="logger.mode=online, but W&B has no key"):
        mode_of("online")
    (tmp_path / "no-netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert mode_of() == mode_of("online") == "online" and mode_of("offline") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert mode_of() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode_of() == "online"
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match="WANDB_API_KEY invalid"):
        mode_of()


def test_a_server_of_ones_own_is_known_by_its_settings_file_and_its_port(mode_of, tmp_path):
    (tmp_path / "no-netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://localhost:8080\n")
    assert mode_of() == "offline"  # the key is another server's: online, W&B would ask for one
    (tmp_path / "no-netrc").write_text(f"machine localhost:8080 login user password {KEY}\n")
    assert mode_of() == "online"
    (tmp_path / "no-netrc").write_text('machine localhost:8080 login user password ""\n')
    assert mode_of() == "offline"


def test_the_environment_decides_where_the_config_leaves_it_open(mode_of, monkeypatch, toy, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for value, mode in (("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("run", "online")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert mode_of() == mode and mode_of("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(ConfigError, match="WANDB_MODE=of-line"):
        mode_of()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match="WANDB_MODE=online, but W&B has no key"):
        mode_of()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said = []
    logger = loggers.make_logger(
        LoggerConfig(kind="wandb"), run_dir=tmp_path / "run", experiment="e", run_name="r", job_type="j", tree={},
        announce=said.append,
    )  # fmt: skip
    assert logger is None and not (tmp_path / "run").exists()
    assert said == ["W&B: disabled (WANDB_MODE); the curves of this run are not logged."]


VARIABLES = ("DISABLED", "PROJECT", "ENTITY", "DIR", "RUN_ID", "RUN_GROUP", "NAME", "TAGS", "JOB_TYPE", "RESUME")


@pytest.fixture
def opened(logged_out, monkeypatch, tmp_path):
    """Make a logger with some keys and variables; return what W&B is given."""
    for name in VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    given = {}
    monkeypatch.setattr(loggers, "open_run", lambda keys, **arguments: given.update(arguments))
    monkeypatch.setattr(loggers, "WandbLogger", lambda **arguments: None)
    monkeypatch.setattr(loggers, "place_of", lambda run, **how: "")

    def make(variables, **keys):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(f"WANDB_{name}", value)
            config = LoggerConfig(kind="wandb", mode="offline", **keys)
            loggers.make_logger(config, run_dir=tmp_path, experiment="e", run_name="r", job_type="j", tree={})
        return given

    return make


@pytest.mark.parametrize(
    ("variables", "keys", "fix"),
    [
        ({"DISABLED": "true"}, {}, "logger=none, or unset WANDB_DISABLED"),
        ({"PROJECT": "theirs"}, {}, "logger.project=theirs, or unset WANDB_PROJECT"),
        ({"ENTITY": "them"}, {"entity": "us"}, "logger.entity=them, or unset WANDB_ENTITY"),
        ({"RUN_GROUP": "a"}, {"group": "b"}, "logger.group=a, or unset WANDB_RUN_GROUP"),
        ({"RUN_ID": "x"}, {}, "unset WANDB_RUN_ID"),
        ({"RESUME": "must"}, {}, "unset WANDB_RESUME"),
    ],
)
def test_variables_that_contradict_the_settings_are_refused_with_both_choices(opened, variables, keys, fix):
    with pytest.raises(ConfigError, match=f"WANDB_{next(iter(variables))}=(.|\n)*{fix}"):
        opened(variables, **keys)


def test_variables_that_the_settings_leave_open_are_obeyed(opened, tmp_path):
    given = opened({"DISABLED": "false", "PROJECT": "diffprobe", "ENTITY": "us"}, entity="us")
    assert (given["group"], given["name"], given["dir"]) == ("e", "r", str(tmp_path))
    given = opened({"RUN_GROUP": "g", "NAME": "n", "JOB_TYPE": "t", "TAGS": "a,b", "DIR": "/elsewhere"}, tags=("c",))
    assert (given["group"], given["name"], given["job_type"], given["dir"]) == ("g", "n", "t", "/elsewhere")
    assert given["tags"] == ["c", "a", "b"]


def test_keys_of_wandb_need_wandb():
    for keys in ({"project": "mine"}, {"mode": "online"}, {"tags": ("a",)}):
        with pytest.raises(ConfigError, match=rf"{next(iter(keys))} without kind=wandb"):
            LoggerConfig(**keys)


def test_an_offline_run_holds_config_summary_history_and_tags(logged_out, toy, tmp_path, capfd):
    settings = TrainerConfig(accelerator="cpu", max_epochs=2, log_every_steps=2, enable_progress_bar=False)
    tree = {"experiment": "emoji/classifier", "seed": 3, "features": {"taps": ["mid_block"], "draws": 1}}
    source = toy()
    classes = {"style": source.attributes["style"]}
    module = ClassifierModule("linear", Config(), widths=source.widths, classes=classes, settings=settings)
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb", tags=("mine",)),
            run_dir=tmp_path,
            experiment="emoji/classifier",
            run_name="emoji/classifier/abc",
            job_type="classifier",
            tree=tree,
            tags=("classifier", "linear"),
        )
        trainer = make_trainer(settings, run_dir=tmp_path, logger=logger)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
        result = make_result(
            run="abc",
            experiment="emoji/classifier",
            kind="classifier",
            config=tree,
            seeds={},
            metrics=module.records("test"),
            started_at=StartTime(0.0, 0.0),
            wandb_run_id=loggers.run_id(logger),
        )
        loggers.finish(logger, result)
    run, config, summary, history = read_run(tmp_path)
    assert run.run_id == result.wandb_run_id and run.project == "diffprobe"
    assert (run.run_group, run.job_type, run.display_name) == ("emoji/classifier", "classifier", "emoji/classifier/abc")
    assert list(run.tags) == ["mine", "classifier", "linear"]
    assert {key: config[key] for key in tree} == tree
    for record in result.metrics:
        name = f"result/test/{record.name}/{record.cell}/style"
        assert summary[name] == pytest.approx(record.value)
        assert summary[f"{name}/shuffled_labels"] == pytest.approx(record.controls["shuffled_labels"])
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == sorted(steps) and len(steps) == 6  # 12 steps, every second one
    assert any("val/accuracy/up_blocks.0@t10:empty:mean/style" in row for row in history)
    out, err = capfd.readouterr()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert out == ""
    assert err.splitlines() == [
        f"W&B: offline (no login), run {run.run_id} in {folder}; to send it later: wandb sync {folder}",
        f"W&B: offline, run {run.run_id} in {folder}; to send it: wandb sync {folder}",
    ]


class OpenRun:
    """What `place_of` reads of a W&B run."""

    def __init__(self, folder, url=None):
        self.id, self.dir, self.url, self.offline = "1a2b", str(folder / "files"), url, url is None


def test_where_a_run_is_names_its_address_or_the_command_that_sends_it(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    run = OpenRun(tmp_path / "my runs" / "offline-run-1")
    assert loggers.place_of(run) == (
        "W&B: offline, run 1a2b in 'my runs/offline-run-1'; to send it later: wandb sync 'my runs/offline-run-1'"
    )
    assert "offline (no login), " in loggers.place_of(run, chosen=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "no login" not in loggers.place_of(run, chosen=False)
    assert loggers.place_of(OpenRun(tmp_path, "https://wandb.ai/us/diffprobe/runs/1a2b"), done=True) == (
        "W&B: online, run 1a2b: https://wandb.ai/us/diffprobe/runs/1a2b"
    )


def test_the_summary_of_a_grid_holds_the_numbers_of_its_members(logged_out, tmp_path):
    def result(*metrics):
        return make_result(
            run="r",
            experiment="e",
            kind="sae",
            config={"k": [2, 4]},
            seeds={},
            metrics=metrics,
            started_at=StartTime(0.0, 0.0),
        )

    def fvu(value):
        return MetricRecord(name="fvu", value=value, split="test", n=4, cell="mid_block@t20", controls={"mean": 1.0})

    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb"), run_dir=tmp_path, experiment="e", run_name="r", job_type="sae", tree={}
        )
        loggers.finish(logger, result(), members={"k=2": result(fvu(0.5)), "k=4": result(fvu(0.25))})
    summary = read_run(tmp_path)[2]
    for member, value in (("k=2", 0.5), ("k=4", 0.25)):
        name = f"{member}/result/test/fvu/mid_block@t20"
        assert summary[name] == value and summary[f"{name}/mean"] == 1.0
    assert summary["config_digest"] == result().config_digest


def test_a_continued_run_keeps_its_id_and_a_new_one_gets_another(logged_out, tmp_path):
    def make(resume):
        with quiet():
            logger = loggers.make_logger(
                LoggerConfig(kind="wandb"),
                run_dir=tmp_path,
                experiment="",
                run_name="r",
                job_type="sae",
                tree={},
                resume=resume,
            )
        return loggers.run_id(logger)

    first = make(False)
    assert make(True) == first != make(False)


def test_csv_and_none(tmp_path):
    common = {"run_dir": tmp_path, "experiment": "", "run_name": "r", "job_type": "sae", "tree": {}}
    assert loggers.make_logger(LoggerConfig(kind="none"), **common) is None
    logger = loggers.make_logger(LoggerConfig(kind="csv"), **common)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finalize("success")
    assert "1.0" in (tmp_path / "curves" / "metrics.csv").read_text()
    again = loggers.make_logger(LoggerConfig(kind="csv"), resume=True, **common)
    assert again.version == "curves-1" and loggers.run_id(again) is None


def test_the_end_of_wandbs_own_process_before_this_one_is_not_printed(monkeypatch):
    def teardown_atexit():
        pass

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    loggers._expect_end_of_service()
    lost = SimpleNamespace(exc_value=ConnectionResetError("Connection lost"), object=teardown_atexit)
    other = SimpleNamespace(exc_value=ValueError("x"), object=teardown_atexit)
    for found in (lost, other):
        sys.unraisablehook(found)
    assert seen == [other]


def test_a_run_of_a_sweep_has_the_id_of_its_agent(opened, tmp_path):
    given = opened({"SWEEP_ID": "s", "RUN_ID": "of-the-agent"})
    assert given["id"] == "of-the-agent"
    assert json.loads((tmp_path / loggers.RUN_FILE).read_text())["id"] == "of-the-agent"
    with pytest.raises(ConfigError, match="WANDB_RUN_ID=x would be ignored"):
        opened({"RUN_ID": "x"})
