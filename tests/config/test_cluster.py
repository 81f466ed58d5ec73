"""Cluster files: the shipped ones are valid, and mistakes are found before anything is submitted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.config.cluster import ClusterConfig, load_cluster, seconds_of, split_cluster
from diffprobe.config.compose import compose, compose_group, values_of
from diffprobe.config.search_path import groups
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize("name", ["local", "example-gpu", "example-cpu"])
def test_the_shipped_files_are_valid(name: str) -> None:
    assert name in groups()["cluster"]
    assert load_cluster([f"cluster={name}"])[0] == name


def test_a_file_of_ones_own_and_keys_of_the_command_line(write: Callable[[str, str], Path]) -> None:
    write("configs/cluster/lab.yaml", "partition: gpu\ngpus_per_node: 4\nenvironment: {A: '1'}\n")
    settings, others = split_cluster(["seed=1", "cluster=lab", "cluster.time=1:00:00", "probe=topk"])
    assert others == ["seed=1", "probe=topk"]
    name, found = load_cluster(settings)
    assert (name, found.partition, found.time, found.environment) == ("lab", "gpu", "1:00:00", {"A": "1"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], r"cluster=NAME is missing(.|\n)*local"),
        (["cluster=locl"], r"unknown cluster 'locl'(.|\n)*nearest: local"),
        (["cluster=local", "cluster=example-gpu"], "more than one cluster"),
        (["cluster=local", "cluster.tim=1"], r"unknown key 'cluster.tim' on the command line(.|\n)*cluster.time"),
        (["cluster=local", "cluster.nodes=0"], "nodes=0"),
        (["cluster=local", "cluster.time=1:00,2:00"], "several values"),
        (["cluster=local", "cluster.time=soon"], r"time=soon(.|\n)*days-hours"),
        (["cluster=local", "cluster.time=0:00"], "time=0:00 is not a time limit"),
        (["cluster=local", "cluster.time=1:00"], "signal_seconds=60 is not before the end of time=1:00"),
        (["cluster=local", "cluster.memory=much"], "memory=much"),
        (["cluster=local", "cluster.partition='a b'"], "not one word"),
        (
            ["cluster=local", 'cluster.options=["--ntasks=3"]'],
            r"--ntasks is written(.|\n)*trainer.devices x",
        ),
        (["cluster=local", 'cluster.options=["--mem=3"]'], r"for example memory"),
        (["cluster=local", 'cluster.options=["-n 3"]'], "long form"),
        (["cluster=local", "cluster.environment={a-b: x}"], "'a-b' is not the name of a variable"),
    ],
)
def test_what_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_cluster(settings)


def test_a_line_that_would_go_on_is_refused() -> None:
    for keys in ({"setup": ("a\nb",)}, {"options": ("--a=1\n#SBATCH --b",)}, {"partition": "a\n#SBATCH --b"}):
        with pytest.raises(ConfigError):
            ClusterConfig(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("time", ["90", "1:30", "24:00:00", "2-0", "1-12:30", "1-0:0:1"])
def test_times_have_the_forms_of_sbatch(time: str) -> None:
    assert seconds_of(time) > 0


def test_a_cluster_is_part_of_no_run() -> None:
    for setting in ("cluster=local", "cluster.time=1:00:00"):
        with pytest.raises(ConfigError, match=rf"fix: diffprobe submit VERB ... {setting}"):
            compose("emoji/sae", [setting])


def test_several_values_of_a_setting() -> None:
    assert values_of("a=1,b") == ["1", "b"] and values_of("a=x:y{") == ["x:y{"]
    with pytest.raises(ConfigError, match="malformed"):
        compose_group("cluster", "local", ["nonsense"])
