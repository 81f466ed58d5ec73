import pytest

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.clusters_settings import ClustersEvaluation


@pytest.mark.parametrize(("changes", "fact"), [({"n_init": 0}, "n_init"), ({"attributes": ()}, "attributes")])
def test_bad_settings_are_refused(changes: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        ClustersEvaluation(experiment="e", run="r", data=DataConfig(path="p"), **changes)  # type: ignore[arg-type]
