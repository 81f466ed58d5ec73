"""A finished run: opened from its folder, its probes, table, heat map, and what it refuses."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, SelectionOnTest, UnknownName
from diffprobe.notebook.finished_run import open_run
from diffprobe.probes.classifier.base import ClassifierProbe
from diffprobe.probes.direction import Direction
from diffprobe.probes.sae.topk import KSAE


def test_a_run_is_opened_from_its_folder(linear):
    again = open_run(linear.folder)
    assert again.result == linear.result and again.config == linear.config and again.kind == "classifier"
    assert repr(again) == repr(linear) and "linear" in repr(again)


def test_several_runs_are_refused_by_name(linear, sae):
    with pytest.raises(ConfigError, match="2 runs|3 runs"):
        open_run(linear.folder.parents[1])


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_run(tmp_path)


def test_a_classifier_is_loaded_by_its_cell_and_scores_as_its_result_says(linear, study):
    probe = linear.probe("mid_block@t20")
    assert isinstance(probe, ClassifierProbe)
    x, y = study.extract().arrays("mid_block@t20", split="test")
    (record,) = [
        m for m in linear.result.metrics
        if (m.name, m.split, m.cell) == ("accuracy", "test", "mid_block@t20:empty:mean")
    ]  # fmt: skip
    assert probe.score(x, y) == pytest.approx(record.value)
    assert "features to 2 classes" in repr(probe) and "classes" in probe._repr_html_()
    assert len(linear.probe_folders) == 2 and all(folder.is_dir() for folder in linear.probe_folders)


def test_an_autoencoder_is_loaded_with_its_weights(sae):
    probe = sae.probe()
    assert isinstance(probe, KSAE) and repr(probe).startswith("TopK(16 latents for ") and "16" in probe._repr_html_()
    assert torch.isfinite(probe.W_dec).all() and bool(probe.initialised)
    with pytest.raises(ConfigError, match="one probe"):
        sae.probe("mid_block@t20")


def test_a_direction_is_loaded(study):
    settings = [
        "probe.cell=mid_block@t20", "probe.targets=[label]", "probe.params.positive=light",
        "probe.params.negative=dark", "probe.params.n_random=2", "probe.params.n_shuffles=2",
    ]  # fmt: skip
    run = study.train("mean_difference", settings)
    assert isinstance(run.probe(), Direction) and run.kind == "direction"


@pytest.mark.parametrize(
    ("arguments", "error", "fact"),
    [
        ((None, None), ConfigError, "2 cells"),
        (("mid_blok", None), UnknownName, "mid_block@t20"),
        (("mid_block", "labl"), UnknownName, "label"),
    ],
)
def test_a_probe_that_is_not_there_is_named(linear, arguments, error, fact):
    with pytest.raises(error, match=fact):
        linear.probe(arguments[0], target=arguments[1])


def test_the_heat_map_is_a_figure_of_layers_and_timesteps(linear, tmp_path):
    from matplotlib.figure import Figure

    figure = linear.heat_map()
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert isinstance(figure, Figure) and {"mid_block", "up_blocks.0", "t = 20"} <= texts
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "map.pdf")
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UnknownName, match="label"):
        linear.heat_map(target="lable")


def test_many_cells_on_test_are_refused_unless_exploratory(linear):
    (chosen,) = linear.table().parts[0].chosen
    assert chosen.interval is not None and chosen.test.split == "test"
    with pytest.raises(SelectionOnTest, match="2 cells on test"):
        linear.table(where={"split": "test"})
    assert "(exploratory)" in linear.table(where={"split": "test"}, exploratory=True).to_markdown()


def test_it_is_shown_with_its_metrics_and_settings(linear, sae):
    shown = linear._repr_html_()
    assert "balanced_accuracy" in shown and "shuffled_labels" in shown and "mid_block@t20" in shown
    assert "fvu" in sae._repr_html_()


def test_features_are_those_of_the_run(linear):
    assert set(linear.features().widths) == {"mid_block@t20:empty:mean", "up_blocks.0@t20:empty:mean"}


def test_a_classifier_has_no_latents(linear):
    with pytest.raises(ConfigError, match="kind classifier has no latents"):
        linear.latent_grid()
