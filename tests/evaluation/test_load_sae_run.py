"""Which folders of `diffprobe train` load: a run or a grid with all of its autoencoders, and nothing else."""

import json
import shutil

import pytest

from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.evaluation.load_sae_run import open_runs
from diffprobe.evaluation.sae import SaeEvaluation, evaluate_sae
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import train
from tests.artifacts import seal

CELL = "mid_block@t20:empty:mean"


@pytest.fixture
def trained(tiny_sd, tiny_shards, tmp_path):
    """Train an sae, or a grid; return the run's folder."""

    def make(*settings):
        config = load_run(
            None,
            [
                "probe=topk",
                "probe.params.n_latents=40",
                f"probe.cell={CELL}",
                "probe.params.k=4",
                f"backbone.path={tiny_sd}",
                "backbone.device=cpu",
                f"data.path={tiny_shards}",
                "data.batch_size=4",
                "features.taps=[mid_block]",
                "features.timesteps=[20]",
                f"features.store={tmp_path / 'stores'}",
                "trainer.max_epochs=1",
                "trainer.enable_progress_bar=false",
                "logger=none",
                f"output={tmp_path / 'runs'}",
                *settings,
            ],
        )
        extract_run(config, progress=False)
        return train(config).parent

    return make


def test_a_run_has_one_autoencoder_and_its_cell(trained):
    folder = trained()
    (found,) = open_runs(str(folder))
    assert found.folder == folder and found.config.probe.name == "topk"
    assert found.saes() == {"probes/sae": folder / "probes" / "sae"}
    assert [cell.name for cell in found.cells(folder / "probes" / "sae")] == [CELL]


@pytest.mark.slow
def test_a_grid_has_those_of_its_members_and_none_is_left_out(trained):
    folder = trained("probe.grid.seed=[0,1]", "probe.grid.k=[4,2]")
    found = open_runs(str(folder))
    names = ["k=2,seed=0", "k=2,seed=1", "k=4,seed=0", "k=4,seed=1"]
    assert [member.folder.name for member in found] == names
    assert [member.saes() for member in found] == [
        {"probes/sae": folder / "members" / name / "probes" / "sae"} for name in names
    ]
    (member,) = open_runs(str(folder / "members" / names[3]))  # its record names a grid, of its seed
    assert member.config.probe.grid == {"seed": (1,)} and member.folder.name == names[3]
    (folder / "members" / names[2] / "result.json").unlink()
    with pytest.raises(WeightsMissing, match=r"1 of its 4 members(.|\n)*k=4,seed=0(.|\n)*eval sae '"):
        open_runs(str(folder))


def test_folders_without_an_sae_run_are_refused(trained, tmp_path):
    for run in ("", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match="has no result.json"):
            open_runs(run)
    folder, other = trained(), tmp_path / "other"
    other.mkdir()

    def write(**changed):
        (other / "result.json").write_text(json.dumps(seal({**result, **changed})))

    def evaluate():
        evaluate_sae(SaeEvaluation(experiment="tiny/evaluate_sae", run=str(other), output=str(tmp_path / "found")))

    result = json.loads((folder / "result.json").read_text())
    write(kind="classifier")
    with pytest.raises(ConfigError, match="kind 'classifier'.*'sae'"):
        evaluate()
    write(artifacts={name: sha for name, sha in result["artifacts"].items() if name.startswith("input/")})
    with pytest.raises(SchemaError, match="result.json"):
        evaluate()
    for name in ("../../x", "/x", "members/../../y"):
        write(artifacts={**result["artifacts"], name: "ab" * 32})
        with pytest.raises(SchemaError, match="result.json.*(not in the folder|outside of its folder)"):
            evaluate()
    write(metrics=[{**metric, "value": 0.0} for metric in result["metrics"]])
    text = (other / "result.json").read_text()
    (other / "result.json").write_text(text.replace('"value": 0.0', '"value": 0.125', 1))
    with pytest.raises(SchemaError, match="result.json' was modified"):
        evaluate()
    write()
    with pytest.raises(WeightsMissing, match="probes/sae/probe.safetensors"):
        evaluate()
    shutil.copytree(folder / "probes", other / "probes")
    (other / "probes" / "sae" / "probe.safetensors").write_bytes(b"other")
    with pytest.raises(SchemaError, match="digest that result.json"):
        evaluate()
    assert not (tmp_path / "found").exists()
