"""`diffprobe eval clusters`: the clusters of a self-guided denoiser against labels, beside clusters that learned less.

Controls of each agreement: k-means on the same features, on those of the same network with random weights, and on
pixels; prototypes that were trained on random weights; and the same clusters against shuffled labels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from diffprobe.analysis.statistics import half_sample_interval
from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import INPUT, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.clusters_settings import ClustersEvaluation
from diffprobe.generative.cluster_assignment import Clusters, clusters_digest, describe_collapse
from diffprobe.generative.image_table import ImageTable, load_table
from diffprobe.generative.long_tail import values_of
from diffprobe.generative.sinkhorn_prototypes import entropy
from diffprobe.metrics.cluster_agreement import AGREEMENTS, cluster_agreement
from diffprobe.shards.index import ShardSet

KIND = "clusters_eval"
"""Kind of the results."""
PIXELS_SIDE = 16
"""Side to which images are averaged for k-means on pixels."""


def evaluate_clusters(config: ClustersEvaluation) -> Path:
    """Assign the images of a split, compare with their labels; return the path of `result.json`.

    The folder is <output>/<experiment>/<first 12 digits of a digest>.

    Raises: the errors of `Clusters` and of reading the split; UnknownName for an attribute that no sample has;
        WeightsMismatch for a random run of another kind or with trained weights.
    """
    started_at = StartTime.now()
    clusters = Clusters(config.run, device=config.device)
    inputs = {SHARDS: ShardSet.load(config.data.path).digest, f"{INPUT}run": clusters_digest(config.run)}
    table = load_table(config.data, config.split, resolution=clusters.resolution)
    labels = {name: values_of(table, name) for name in config.attributes}
    features = features_of(clusters, table)
    own = clusters.assign(features)
    k = len(own.unique())
    partitions: dict[str, NDArray[np.int64]] = {
        "kmeans_features": k_means(features, k, config),
        "kmeans_random_network": k_means(
            features_of(Clusters(config.run, random_network=True, device=config.device), table), k, config
        ),
        "kmeans_pixels": k_means(adaptive_avg_pool2d(table.to_float(slice(None)), PIXELS_SIDE).flatten(1), k, config),
    }
    if config.random_run is not None:
        other = Clusters(config.random_run, device=config.device)
        if not other.settings.random_network:
            raise WeightsMismatch(
                f"random_run='{config.random_run}' was not trained on random weights.",
                fix="a run with prototypes.random_network=true, or random_run=null",
            )
        inputs[f"{INPUT}random_run"] = clusters_digest(config.random_run)
        partitions["random_network"] = other.assign(features_of(other, table)).numpy()
    metrics = [_usage(clusters, own, config)]
    rng = np.random.default_rng(config.seed)
    with ProgressDisplay(transient=True) as progress:
        with progress.bar(len(labels), "clusters against labels", unit="attributes") as bar:
            for name, values in labels.items():
                metrics += _agreements(name, values, own.numpy(), partitions, rng.permutation(len(values)), config)
                bar.update(1)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"seed": config.seed}, metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _agreements(
    name: str,
    values: Sequence[str],
    own: NDArray[np.int64],
    partitions: Mapping[str, NDArray[np.int64]],
    order: NDArray[np.int64],
    config: ClustersEvaluation,
) -> list[MetricRecord]:
    """Return the records of one attribute; `order` shuffles its labels."""
    found = cluster_agreement(own.tolist(), values)
    controls = {key: cluster_agreement(part.tolist(), values) for key, part in partitions.items()}
    controls["shuffled_labels"] = cluster_agreement(own.tolist(), [values[row] for row in order])
    intervals = adjusted_intervals(own, partitions, values, config) if config.n_resamples else {}
    sizes = {"clusters": len(np.unique(own)), "labels": len(set(values))}
    return [
        MetricRecord(
            name=measure, value=found[measure], split=config.split, n=len(values), target=name,
            controls={key: one[measure] for key, one in controls.items()},
            detail={**sizes, **(intervals if measure == "ami" else {})},
        )
        for measure in AGREEMENTS
    ]  # fmt: skip


def adjusted_intervals(
    own: NDArray[np.int64],
    partitions: Mapping[str, NDArray[np.int64]],
    values: Sequence[str],
    config: ClustersEvaluation,
) -> dict[str, Any]:
    """Return the 95 % intervals of the AMI of the clusters, and of its differences from that of other partitions.

    Half samples of images, the same for both partitions of a difference; they hold for these trained networks. Without
    entries if a half of the images has one label alone.
    """
    labels = np.asarray(values)

    def agreement(part: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
        return cluster_agreement(part[rows].tolist(), labels[rows].tolist())["ami"]

    def interval(statistic: Callable[[NDArray[np.int64]], float]) -> list[float]:
        found = half_sample_interval(statistic, range(len(labels)), n_resamples=config.n_resamples, seed=config.seed)
        return [found.low, found.high]

    halves: dict[bytes, float] = {}

    def of_own(rows: NDArray[np.int64]) -> float:
        key = rows.tobytes()  # the same halves come again for each control
        if key not in halves:
            halves[key] = agreement(own, rows)
        return halves[key]

    def minus(part: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], float]:
        return lambda rows: of_own(rows) - agreement(part, rows)

    try:
        differences = {name: interval(minus(part)) for name, part in partitions.items()}
        return {"interval": interval(of_own), "level": 0.95, "differences": differences}
    except ConfigError:  # too few images, or a half whose labels are all equal
        return {}


def features_of(clusters: Clusters, table: ImageTable) -> Float[Tensor, "sample d_in"]:
    """Return the mid-block features of all images of a table."""
    found = []
    with ProgressDisplay(transient=True) as progress, progress.bar(len(table), "features", unit="images") as bar:
        for part in torch.arange(len(table)).split(256):
            found.append(clusters.features(table.to_float(part), [table.keys[row] for row in part]))
            bar.update(len(part))
    return torch.cat(found)


def k_means(features: Float[Tensor, "sample d"], k: int, config: ClustersEvaluation) -> NDArray[np.int64]:
    """Return the cluster of each sample by k-means on standardised features."""
    from sklearn.cluster import KMeans  # heavy

    values = features.double().numpy()
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    found: NDArray[np.int64] = KMeans(k, n_init=config.n_init, random_state=config.seed).fit_predict(values)
    return found


def _usage(clusters: Clusters, own: Tensor, config: ClustersEvaluation) -> MetricRecord:
    """Return the effective number of prototypes, with the entropy curve of the training and the name of a collapse."""
    shares = own.bincount(minlength=clusters.settings.n) / len(own)
    collapse = {"collapse": describe_collapse(clusters.facts)} if clusters.collapsed else {}
    return MetricRecord(
        name="effective_prototypes", value=float(np.exp(entropy(shares))), split=config.split, n=len(own),
        detail={
            "shares": shares.tolist(), "prototypes": clusters.settings.n, "used": int((shares > 0).sum()),
            "entropy_curve": clusters.facts["entropy_curve"], **collapse,
        },
    )  # fmt: skip
