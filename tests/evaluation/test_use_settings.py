import pytest

from diffprobe.config.compose import load_run
from diffprobe.config.parse import to_tree
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import StartTime, make_result, write_result
from diffprobe.evaluation.use_settings import load_use

PROBE = ["experiment=emoji/classifier", "features.taps=[mid_block]", "data.limit=9", "limit=4", "output=out"]


def test_an_experiment_of_its_kind_is_the_default():
    config = load_use(["limit=7", "features.timesteps=[25]"])
    assert config.experiment == "emoji/use" and config.limit == 7 and config.features.timesteps == (25,)
    assert config == load_use(["experiment=emoji/use", "limit=7", "features.timesteps=[25]"])


def test_a_probe_experiment_gives_its_cells_and_settings_of_both_may_be_mixed():
    config = load_use([*PROBE, "interventions=[patching]", "group_attribute=null"])
    run = load_run("emoji/classifier", ["features.taps=[mid_block]", "data.limit=9"])
    assert (config.backbone, config.data, config.features) == (run.backbone, run.data, run.features)
    assert config.experiment == "emoji/classifier" and config.output == "out"
    assert config.limit == 4 and config.interventions == ("patching",) and config.group_attribute is None


@pytest.fixture
def finished(tmp_path):
    """Make the folder of a finished run of a kind; grids have `=` in the names of theirs."""

    def make(kind="classifier", *settings):
        run = load_run("emoji/classifier", ["features.timesteps=[25]", *settings])
        tree = {key: value for key, value in to_tree(run).items() if key not in ("experiment", "output")}
        result = make_result(
            run="x", experiment="emoji/classifier", kind=kind, config=tree, seeds={}, metrics=[],
            started_at=StartTime.now(),
        )  # fmt: skip
        folder = tmp_path / f"seed=3,{kind}"
        folder.mkdir()
        write_result(result, folder / "result.json")
        return str(folder)

    return make


def test_a_finished_run_gives_its_cells(finished):
    config = load_use([finished(), "features.taps=[up_blocks.*]", "backbone.device=cpu", "seed=4"])
    assert config.experiment == "emoji/classifier" and config.seed == 4 and config.features.timesteps == (25,)
    assert config.features.taps == ("up_blocks.*",) and config.backbone.device == "cpu"


@pytest.mark.slow
def test_a_run_on_views_is_measured_on_the_images(finished):
    views = ["features.views.flip=0.5", "features.views.n=2"]
    assert load_use([finished("classifier", *views)]) == load_use([finished("direction")])
    assert not load_use([*PROBE, *views]).features.views.active
    with pytest.raises(ConfigError, match="features.views: an evaluation reads the images"):
        load_use(views)
    with pytest.raises(ConfigError, match="features.massive"):
        load_use(["features.massive.treatment=drop"])


def test_a_control_of_random_weights_is_measured_as_such(finished):
    assert load_use([finished("classifier", "control=random_weights")]).backbone.random_weights


def test_what_is_not_there_is_refused(finished, tmp_path):
    folder = finished()
    with pytest.raises(ConfigError, match="more than one thing(.|\n)*experiment=emoji/use"):
        load_use([folder, "experiment=emoji/use"])
    with pytest.raises(ConfigError, match="nowhere' is not the folder of a finished run(.|\n)*result.json"):
        load_use([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="kind 'use'(.|\n)*classifier"):
        load_use([finished("use")])
    with pytest.raises(ConfigError, match="'limt'(.|\n)*limit"):
        load_use([folder, "limt=3"])
    with pytest.raises(ConfigError, match="features.tap'(.|\n)*taps"):
        load_use([folder, "features.tap=mid_block"])
    with pytest.raises(ConfigError, match="'features.taps' has no keys"):
        load_use([folder, "features.taps.x=3"])
    with pytest.raises(ConfigError, match="interventions"):
        load_use([*PROBE, "interventions=[zero]"])
    with pytest.raises(ConfigError, match="'demo'.*diffprobe demo|evaluate_use"):
        load_use(["experiment=emoji/demo"])
