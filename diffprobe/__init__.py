"""diffprobe: read what a frozen diffusion model knows.

The public names are imported on first use, so that ``import diffprobe`` and ``diffprobe --help`` stay fast:

- ``DiffusionFeatures``: images in, features of named taps and timesteps out (`backbones/extractor.py`).
- ``FeatureStore``: the features of an extracted run on disk, as arrays by split and cell (`features/reader.py`).
- ``Study``: a folder of images and settings in; features, probes and figures out, in a few lines (`notebook/study.py`).
- ``open_run``: the folder of a finished run in; its result, probes, heat map and top images of latents out
  (`notebook/finished_run.py`).
- ``load_experiment``: name and settings of an experiment in, its validated configuration out (`runs/experiment.py`).
- ``extract``: a configuration in, its feature store out (`runs/experiment.py`).
- ``train``: a configuration in, the path of its `result.json` out (`runs/experiment.py`).
- ``LinearProbe``: a linear classifier with ``fit``, ``predict``, ``save_pretrained`` and ``from_pretrained``
  (`probes/classifier/linear.py`).
- ``KSAE``: a trained k-sparse autoencoder (`probes/sae/topk.py`).
- ``heat_map``: a two-dimensional array in, a matplotlib figure out (`report/figure.py`).
- ``build_table``: the table of an experiment from result files, as Markdown, CSV or LaTeX (`runs/tables.py`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "DiffusionFeatures": "diffprobe.backbones.extractor",
    "FeatureStore": "diffprobe.features.reader",
    "KSAE": "diffprobe.probes.sae.topk",
    "LinearProbe": "diffprobe.probes.classifier.linear",
    "Study": "diffprobe.notebook.study",
    "build_table": "diffprobe.runs.tables",
    "extract": "diffprobe.runs.experiment",
    "heat_map": "diffprobe.report.figure",
    "load_experiment": "diffprobe.runs.experiment",
    "open_run": "diffprobe.notebook.finished_run",
    "train": "diffprobe.runs.experiment",
}
"""Public name -> module that defines it. `__init__.pyi` has the same names for type checkers."""

__all__ = [
    "DiffusionFeatures",
    "FeatureStore",
    "KSAE",
    "LinearProbe",
    "Study",
    "__version__",
    "build_table",
    "extract",
    "heat_map",
    "load_experiment",
    "open_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'diffprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
