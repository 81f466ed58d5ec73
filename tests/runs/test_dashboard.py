"""What the dashboard of an experiment shows."""

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.runs.dashboard import dashboard_of


def test_a_folder_has_all_its_experiments_and_the_metrics_of_its_tables() -> None:
    found = dashboard_of("emoji/sae_table/")
    assert found.experiments == tuple(f"emoji/sae_table/{x}" for x in ("batch_topk", "jumprelu", "matryoshka", "topk"))
    assert found.metrics[0] == "fvu" and "probe.name" in found.settings
    assert found.media == ("table/scores", "page/run")  # members of a grid have names of their own


def test_the_heat_maps_are_those_that_its_runs_log() -> None:
    found = dashboard_of("emoji/classifier")
    assert found.metrics[0] == "balanced_accuracy" and "figure/balanced_accuracy group linear empty:mean" in found.media
    assert "balanced_accuracy" not in dashboard_of("emoji/sae").metrics  # of another kind, in the same folder


def test_an_experiment_without_a_table_has_the_metrics_of_its_kind() -> None:
    found = dashboard_of("emoji/train_denoiser")
    assert found.experiments == ("emoji/train_denoiser",) and found.settings == ()


def test_another_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RunFailed, match=r"(?s)emoji/saee.*nearest: emoji/sae"):
        dashboard_of("emoji/saee")
