"""What the dashboard of an experiment shows."""

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.runs.dashboard import dashboard_of


def test_a_folder_has_all_its_experiments_and_the_metrics_of_its_tables() -> None:
    found = dashboard_of("emoji/sae_table/")
    assert found.experiments == tuple(f"emoji/sae_table/{x}" for x in ("batch_topk", "jumprelu", "matryoshka", "topk"))
    assert found.metrics[0] == "fvu" and "probe.name" in found.settings


def test_an_experiment_without_a_table_has_the_metrics_of_its_kind() -> None:
    found = dashboard_of("emoji/train_denoiser")
    assert found.experiments == ("emoji/train_denoiser",) and found.settings == ()


def test_another_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RunFailed, match=r"(?s)emoji/saee.*nearest: emoji/sae"):
        dashboard_of("emoji/saee")
