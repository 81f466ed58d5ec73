from diffprobe.backbones.extractor import DiffusionFeatures as DiffusionFeatures
from diffprobe.features.reader import FeatureStore as FeatureStore
from diffprobe.notebook.finished_run import open_run as open_run
from diffprobe.notebook.study import Study as Study
from diffprobe.probes.classifier.linear import LinearProbe as LinearProbe
from diffprobe.probes.sae.topk import KSAE as KSAE
from diffprobe.report.figure import heat_map as heat_map
from diffprobe.runs.experiment import extract as extract
from diffprobe.runs.experiment import load_experiment as load_experiment
from diffprobe.runs.experiment import train as train
from diffprobe.runs.tables import build_table as build_table

__version__: str
