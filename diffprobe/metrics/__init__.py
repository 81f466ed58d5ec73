"""Metrics: one file per metric, exact however the samples are split over batches and processes.

A file that is not listed in `SHARED` is a registered metric (`core.registry.METRICS`). It assigns these constants at
its top level, as literals, so that they can be read without importing torch (`described`):

- `FOR`: what the metric is measured on. "sae": rows of a split, with their reconstructions and codes. "sae_decoder":
  the decoder of a trained autoencoder. "sae_training": the codes of the training steps (`dead_latents.py`, which the
  training module reads itself). "classifier": the confusion counts of a classifier on a split.
- `NAME`: name of the metric in result records, logs, tables and pages.
- `HIGHER_IS_BETTER`: True, False, or None where neither end is better.
- `HELP`: what the metric means, one line for the report page.
- `ORDER` (optional): position among the metrics of a result; equal ones are in alphabetical order. 100 if left out.

A metric of an autoencoder further offers `make(d_in, n_latents)`, which returns a `torchmetrics.Metric`:

- `update` takes those of these arguments that it needs, by name. FOR "sae": `x` and `x_hat` [rows, d_in], `values` and
  `indices` [rows, k]. FOR "sae_decoder": `decoder` [n_latents, d_in]. Metrics that inherit `update` from one class and
  have states of equal shapes share these states: `update` must depend on its arguments and on the states alone.
- `compute` returns the value, a scalar tensor.
- `controls()` and `detail()` (both optional) return what the record holds besides the value.

A metric of a classifier offers two functions of its confusion counts [true, predicted]: `from_confusion(counts)`, the
value, and `chance(counts)`, the value of the best constant answer, a function of the true classes alone. It may offer
`from_confusions(counts)` [heads, true, predicted], the same values for many classifiers at once, as a list.

`tests/metrics/test_registered.py` runs all of them, and adds one to a copy of the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.registry import METRICS

SHARED = (
    "auroc",
    "cluster_agreement",
    "confusion",
    "dense",
    "depth_order",
    "grouped",
    "headline",
    "label_collector",
    "latent_usage",
    "moments",
)
"""Files of this folder that are not metrics of a result: what the metrics share."""


@dataclass(frozen=True, kw_only=True)
class MetricDescription:
    """The constants of a registered metric."""

    file: str
    """Name of the file, without suffix."""
    measured_on: str
    """`FOR` of the file."""
    name: str
    """Name in result records."""
    higher_is_better: bool | None
    """Which end is better, None for neither."""
    help: str
    """What the metric means, in one line."""
    order: int
    """Position among the metrics of a result."""


@cache
def described() -> dict[str, MetricDescription]:
    """Return the registered metrics by their names in result records, in the order of a result. Does not import torch.

    Raises: SchemaError, naming the file, if a constant is missing, or if two files have one `NAME`.
    """
    from diffprobe.core.errors import SchemaError

    found: list[MetricDescription] = []
    for file in METRICS.names():
        constants = METRICS.constants(file)
        missing = [key for key in ("FOR", "NAME", "HIGHER_IS_BETTER", "HELP") if key not in constants]
        if missing:
            raise SchemaError(
                f"metric '{file}' does not assign {', '.join(missing)} at the top level of its file, as literals.",
                fix=f"add the constants to diffprobe/metrics/{file}.py, or the file's name to metrics.SHARED",
            )
        found.append(
            MetricDescription(
                file=file,
                measured_on=constants["FOR"],
                name=constants["NAME"],
                higher_is_better=constants["HIGHER_IS_BETTER"],
                help=constants["HELP"],
                order=constants.get("ORDER", 100),
            )
        )
    found.sort(key=lambda metric: (metric.order, metric.file))
    by_name = {metric.name: metric for metric in found}
    for metric in found:
        if by_name[metric.name] is not metric:
            raise SchemaError(
                f"two metrics have the NAME '{metric.name}': {metric.file}.py and {by_name[metric.name].file}.py."
            )
    return by_name


def measured_on(what: str) -> list[MetricDescription]:
    """Return the registered metrics whose `FOR` is `what`, in the order of a result."""
    return [metric for metric in described().values() if metric.measured_on == what]


def load_metrics(what: str, names: Sequence[str]) -> list[ModuleType]:
    """Import some metrics whose `FOR` is `what`, by their names. Only the files named are imported.

    Raises: UnknownName, with the nearest, for another name; ConfigError for a name that is given twice.
    """
    files = {metric.name: metric.file for metric in measured_on(what)}
    for i, name in enumerate(names):
        if name not in files:
            raise unknown(f"metric of '{what}':", name, files)
        if name in names[:i]:
            raise ConfigError(f"metric '{name}' is given twice.")
    return [METRICS.load(files[name]) for name in names]
