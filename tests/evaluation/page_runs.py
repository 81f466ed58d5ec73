"""Finished tiny runs for the tests of pages: trained once per process, and what can be done with their folders."""

from collections.abc import Callable
from pathlib import Path

from diffprobe.config.compose import load_run
from diffprobe.evaluation.probe_runs import ProbeRun, open_probe_runs
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import train

CELL = "mid_block@t20"


def trainer(backbone: Path, data: Path, folder: Path) -> Callable[..., Path]:
    """Return a function that trains a tiny probe with some settings, and returns the folder of the run."""

    def make(*settings: str) -> Path:
        config = load_run(
            None,
            [
                f"backbone.path={backbone}", "backbone.device=cpu", f"data.path={data}", "data.batch_size=8",
                "features.taps=[mid_block]", "features.timesteps=[20]", f"features.store={folder / 'stores'}",
                f"probe.cell={CELL}", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none",
                f"output={folder / 'runs'}", *settings,
            ],
        )  # fmt: skip
        if config.features.source == "stored":
            extract_run(config, progress=False)
        return train(config).parent

    return make


SAE = ("probe=topk", "probe.params.n_latents=32")
SPATIAL = ("probe=batch_topk", "probe.params.n_latents=32", "probe.params.k=4", "features.pool=none")
DIRECTION = (
    "probe=mean_difference", "probe.targets=[style]", "probe.params.positive=noto", "probe.params.n_random=3",
    "probe.params.n_shuffles=2",
)  # fmt: skip


def opened(*folders: Path) -> list[ProbeRun]:
    return list(open_probe_runs(list(folders)).runs)
