"""Settings of `diffprobe eval clusters`."""

from dataclasses import dataclass

from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClustersEvaluation:
    """Settings of `diffprobe eval clusters` (experiment files of kind `evaluate_clusters`)."""

    experiment: str
    """Name of the experiment."""
    run: str
    """Folder of a finished run of kind `train_self_guided`."""
    data: DataConfig
    """Images with the attributes that clusters are compared with; the training did not read them."""
    split: str = "test"
    """Split of the images."""
    attributes: tuple[str, ...] = ("role",)
    """Attributes whose values are the labels."""
    random_run: str | None = None
    """Folder of the same run with prototypes.random_network=true, for the control `random_network`; None: without."""
    n_init: int = 4
    """Starts of k-means, of which the best is kept."""
    n_resamples: int = 200
    """Half samples of images behind the intervals of AMI; 0: no intervals."""
    device: str = "cpu"
    """Device of the network."""
    seed: int = 0
    """Seed of k-means, of the shuffled labels and of the half samples."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, n_init=self.n_init)
        at_least(0, n_resamples=self.n_resamples)
        if not self.attributes:
            raise ConfigError("attributes=[] leaves nothing to compare clusters with.", fix="attributes=[role]")
