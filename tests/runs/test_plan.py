import subprocess
import sys

import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.runs.plan import plan


def test_faults_are_found_before_anything_is_loaded(run, tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'probe.params.kk'"):
        plan(run("probe=topk", "probe.params.kk=3"))
    with pytest.raises(UnknownName, match="unknown probe of kind 'sae' 'topp'"):
        plan(run("probe=topk", "probe.name=topp"))
    with pytest.raises(ConfigError, match="control=shuffled_labels"):
        plan(run("probe=topk", "control=shuffled_labels"))
    with pytest.raises(ConfigError, match="missing key 'probe.params.positive'"):
        plan(run("probe=ridge"))
    for probe in (["probe=linear"], ["probe=ridge", "probe.params.positive=noto"]):
        with pytest.raises(ConfigError, match="shuffle=rows: a probe of kind '.*'"):
            plan(run(*probe, "features.shuffle=rows"))
    for buffer in ("probe.params.row_buffer=8", "probe.grid.row_buffer=[0,8]"):
        with pytest.raises(ConfigError, match="features.shuffle=rows with probe.params.row_buffer"):
            plan(run("probe=topk", buffer, "features.shuffle=rows"))
    with pytest.raises(ConfigError, match="source=live: probe.params.row_buffer=N mixes N rows while streaming"):
        run("probe=topk", "features.shuffle=rows", "features.source=live")
    assert not list(tmp_path.iterdir())


def test_a_run_is_judged_without_what_trains_it():
    """`diffprobe config` judges; what would only be loaded to train, or to open a backbone, is left alone."""
    code = """
import sys
from diffprobe.config.compose import load
from diffprobe.runs.plan import plan
assert "torch" not in sys.modules
plan(load(None, ["experiment=emoji/classifier"]))
print([name for name in ("lightning", "diffusers", "transformers", "wandb") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
