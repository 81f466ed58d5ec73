"""The registered metrics: all of them fulfil the contract, and adding one is adding a file."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torchmetrics import Metric

from diffprobe.core.errors import SchemaError
from diffprobe.core.registry import METRICS, Registry
from diffprobe.metrics import described, measured_on

ROOT = Path(__file__).parents[2]
D_IN, N_LATENTS = 5, 8
GENERATOR = torch.Generator().manual_seed(0)
X = 3 + torch.randn(40, D_IN, generator=GENERATOR)
ARGUMENTS = {
    "sae": {
        "x": X,
        "x_hat": X + 0.1 * torch.randn(40, D_IN, generator=GENERATOR),
        "values": torch.rand(40, 2, generator=GENERATOR),
        "indices": torch.randint(0, N_LATENTS, (40, 2), generator=GENERATOR),
    },
    "sae_decoder": {"decoder": torch.randn(N_LATENTS, D_IN, generator=GENERATOR)},
}
OF_AUTOENCODERS = [metric for what in ARGUMENTS for metric in measured_on(what)]


@pytest.mark.parametrize("described_metric", OF_AUTOENCODERS, ids=lambda metric: metric.file)
def test_a_metric_of_autoencoders_fulfils_the_contract(described_metric):
    module, arguments = METRICS.load(described_metric.file), ARGUMENTS[described_metric.measured_on]
    metric = module.make(D_IN, N_LATENTS)
    assert isinstance(metric, Metric)
    metric.update(**metric._filter_kwargs(**arguments))
    value = metric.compute()
    assert value.shape == () and torch.isfinite(value)
    for name in ("controls", "detail"):
        json.dumps(getattr(metric, name, dict)())
    if hasattr(metric, "controls"):
        assert all(isinstance(control, float) for control in metric.controls().values())
    if metric.higher_is_better is not None:
        assert metric.higher_is_better is described_metric.higher_is_better
    metric.reset()
    metric.update(**metric._filter_kwargs(**arguments))
    assert metric.compute().equal(value)


def test_descriptions_are_those_of_the_files_and_need_no_torch():
    for name, metric in described().items():
        module = METRICS.load(metric.file)
        own = (module.NAME, module.FOR, module.HIGHER_IS_BETTER, module.HELP)
        assert (name, metric.measured_on, metric.higher_is_better, metric.help) == own
        assert metric.help and "\n" not in metric.help
    code = "import sys; from diffprobe.metrics import described; assert described(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_records_of_an_autoencoder_begin_with_its_reconstruction():
    names = [metric.name for metric in measured_on("sae")]
    assert names[:6] == ["fvu", "explained_variance", "l0", "dead_fraction", "dense_fraction", "gamma"]


def test_constants_are_read_from_plain_and_from_tuple_assignments(tmp_path, monkeypatch):
    package = tmp_path / "constant_entries"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("import not_there\nFOR, NAME = 'sae', 'one'\nA = B = None\nC = len('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    constants = Registry("constant_entries", "entry").constants("one")
    assert constants == {"FOR": "sae", "NAME": "one", "A": None, "B": None}


@pytest.mark.parametrize(
    ("source", "facts"),
    [("NAME = 'new'\nFOR = 'sae'", "'half' does not assign HIGHER_IS_BETTER, HELP"), (None, "'fvu'.*(fvu|half)")],
)
def test_a_file_that_breaks_the_contract_is_named(tmp_path, monkeypatch, source, facts):
    package = tmp_path / "broken_metrics"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(ROOT / "diffprobe" / "metrics" / "fvu.py", package)
    (package / "half.py").write_text(source or (package / "fvu.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("diffprobe.metrics.METRICS", Registry("broken_metrics", "metric"))
    with pytest.raises(SchemaError, match=facts):
        described.__wrapped__()
    sys.modules.pop("broken_metrics", None)


METRIC = '''
"""Share of rows without an active latent."""

import torch
from torchmetrics import Metric

FOR = "sae"
NAME = "silent_rows"
HIGHER_IS_BETTER = False
HELP = "share of rows on which no latent is active"


class SilentRows(Metric):
    """Share of rows without an active latent."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("silent", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values):
        silent = (values <= 0).all(1)
        self.silent = self.silent + torch.stack([silent.sum(), torch.tensor(len(silent))])

    def compute(self):
        return self.silent[0] / self.silent[1]

    def controls(self):
        return {"no_activity": 1.0}


def make(d_in, n_latents):
    """Make the metric."""
    return SilentRows()
'''
TRAINING = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.result import StartTime, make_result, write_result
from diffprobe.probes.sae.topk import Config
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

cell = "mid_block@t10:empty:mean"
settings = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=1)
module = SparseAutoencoderModule(Config(k=2, n_latents=8, dead_window=50), cell=cell, d_in=12, settings=settings)
source = toy.Toy(cells=(cell,))
with quiet():
    trainer = make_trainer(settings, run_dir=Path(sys.argv[2]))
    trainer.fit(module, datamodule=source)
    trainer.test(module, datamodule=source, verbose=False)
result = make_result(run="r", experiment="", kind="sae", config={}, seeds={}, metrics=module.records("test"),
                     started_at=StartTime.now())
write_result(result, Path(sys.argv[2]) / "result.json")
"""


@pytest.mark.slow
def test_adding_a_metric_is_adding_one_file(tmp_path):
    """In a copy of the package: the new file alone brings the metric into result.json and its help onto the page."""
    copy, out = tmp_path / "copy" / "diffprobe", tmp_path / "out"
    shutil.copytree(ROOT / "diffprobe", copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    (copy / "metrics" / "silent_rows.py").write_text(textwrap.dedent(METRIC).lstrip())
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", TRAINING, str(ROOT / "tests" / "toy.py"), str(out)]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    metrics = {metric["name"]: metric for metric in json.loads((out / "result.json").read_text())["metrics"]}
    assert 0 <= metrics["silent_rows"]["value"] <= 1 and metrics["silent_rows"]["controls"] == {"no_activity": 1.0}
    code = "import sys; from diffprobe.metrics import described; print(described()[sys.argv[1]].help)"
    shown = [sys.executable, "-c", code, "silent_rows"]
    help_text = subprocess.run(shown, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert help_text.strip() == "share of rows on which no latent is active"
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    touched = [path for path in after if before.get(path) != after[path]]
    assert touched == [copy / "metrics" / "silent_rows.py"]
