import pytest

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.types import Config
from diffprobe.training.sae_schedule import check_precision, step_size_factor, warn_of_window


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_round_the_weights_are_refused(precision):
    with pytest.raises(ConfigError, match=f"trainer.precision={precision} would round") as error:
        check_precision(TrainerConfig(precision=precision))
    assert error.value.fix == "trainer.precision=bf16-mixed"


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_the_others_pass(precision):
    check_precision(TrainerConfig(precision=precision))


@pytest.mark.parametrize("total", [2_000, 2_000_000])
def test_the_first_step_is_one_part_of_the_warm_up_however_long_the_run(total):
    factor = step_size_factor(Config(warmup_steps=500), total)
    assert [factor(step / total) for step in (0, 1, 249, 499, 500)] == pytest.approx([1 / 500, 2 / 500, 0.5, 1, 1])


def test_without_warmup_steps_the_rise_is_the_first_twentieth():
    factor = step_size_factor(Config(), 600)
    assert [factor(step / 600) for step in (0, 14, 29, 30)] == pytest.approx([1 / 30, 0.5, 1, 1])
    assert step_size_factor(Config(), 10)(0) == 1  # a twentieth of it is less than a step


def test_it_falls_to_zero_over_the_last_part_or_stays():
    falling, constant = step_size_factor(Config(decay=0.2), 100), step_size_factor(Config(decay=0.0), 100)
    assert [falling(progress) for progress in (0.8, 0.9, 1.0)] == pytest.approx([1, 0.5, 0])
    assert constant(1.0) == 1


def test_a_run_shorter_than_the_window_is_warned_of(recwarn):
    warn_of_window(Config(dead_window=50_000), n_rows=5_000, n_trained=50_000)
    assert not recwarn
    with pytest.warns(
        UserWarning, match="dead_window=1000000 rows .* trains on 50000 .5000 a pass., so AuxK never"
    ) as w:
        warn_of_window(Config(), n_rows=5_000, n_trained=50_000)
    assert str(w[0].message).endswith("A window that fits: probe.params.dead_window=20000")
    with pytest.warns(UserWarning, match=r"a pass\), so no windowed_dead_fraction .*dead_window=1$"):
        warn_of_window(Config(aux_weight=0.0), n_rows=3, n_trained=3)
