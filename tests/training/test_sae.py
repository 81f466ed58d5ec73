from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from threading import Barrier

import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.metrics.fvu import fvu
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.topk import Config
from diffprobe.probes.sae.types import SINGLE_PROCESS, Collective
from diffprobe.training.sae import (
    SparseAutoencoderModule,
    check_precision,
    make_sae,
    step_size_factor,
    warn_of_window,
)
from diffprobe.training.sae_rows import ChosenRows
from diffprobe.training.trainer import make_trainer, quiet

CELL = "mid_block@t10:empty:mean"


def run(toy, tmp_path, source=None, probe=None, start=None, callbacks=(), **settings):
    source = source or toy(cells=(CELL,))
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 5, "learning_rate": 0.01} | settings
    config = TrainerConfig(**settings)
    probe = probe or Config(k=3, n_latents=32, dead_window=150, k_aux=4)
    module = SparseAutoencoderModule(probe, cell=CELL, d_in=12, settings=config)
    if start is not None:
        start(module)
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path, callbacks=callbacks)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def test_the_step_size_is_that_of_the_trainer_then_of_the_probe_then_of_the_rule():
    def used(trainer: float | None, **probe: object) -> float:
        settings = TrainerConfig(learning_rate=trainer)
        config = Config(k=3, **probe)
        return SparseAutoencoderModule(config, cell=CELL, d_in=12, settings=settings).learning_rate

    assert used(0.02, learning_rate=0.01) == 0.02 and used(None, learning_rate=0.01) == 0.01
    assert used(None) == Config().rate(8 * 12) and used(None, n_latents=4096) == Config().rate(4096) < used(None)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_longer_training_explains_more_and_keeps_the_invariants(toy, tmp_path, precision):
    short = run(toy, tmp_path / "short", max_epochs=1, precision=precision)
    long = run(toy, tmp_path / "long", max_epochs=40, precision=precision)
    assert long.scores["train"]["fvu"] < 0.6 * short.scores["train"]["fvu"]
    torch.testing.assert_close(long.sae.W_dec.norm(dim=1), torch.ones(32))
    assert long.sae.W_enc.dtype == torch.float32
    records = {record.name: record for record in long.records("test")}
    assert 0 < records["l0"].value <= 3 and records["fvu"].n == 21
    assert records["explained_variance"].value == pytest.approx(1 - records["fvu"].value)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_reported_numbers_are_those_of_the_saved_weights(toy, tmp_path, precision):
    module = run(toy, tmp_path, precision=precision)
    module.sae.save_pretrained(tmp_path / "sae")
    sae, x = KSAE.from_pretrained(tmp_path / "sae"), toy().table("test").features[CELL]
    with torch.no_grad():
        x_hat, code = sae(x)
    assert module.scores["test"]["fvu"] == pytest.approx(fvu(x, x_hat), rel=1e-6)
    used = code.indices[code.values > 0].unique().numel()
    assert module.scores["test"]["dead_fraction"] == pytest.approx(1 - used / 32)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_idle_counters_count_samples_and_evaluation_leaves_them_alone(toy, tmp_path):
    module = run(toy, tmp_path, max_epochs=2)
    source = toy(cells=(CELL,))
    before = module.dead_latents.idle.clone()
    assert int(before.max()) <= 2 * 91 and int(before.min()) < 16
    with quiet():
        make_trainer(module.settings, run_dir=tmp_path / "again").validate(module, datamodule=source, verbose=False)
    assert module.dead_latents.idle.equal(before)


@pytest.mark.slow
def test_dead_latents_are_revived(toy, tmp_path):
    def train(weight):
        probe = Config(k=2, n_latents=24, dead_window=100, k_aux=6, aux_weight=weight)
        return run(toy, tmp_path / str(weight), probe=probe, max_epochs=25, start=silence)

    def silence(module):
        module.sae.b_enc.data[6:] = -2.0  # three in four latents lose every selection

    without, with_aux = train(0.0), train(1 / 32)
    assert int(without.dead_latents.mask.sum()) >= 8
    assert int(with_aux.dead_latents.mask.sum()) <= int(without.dead_latents.mask.sum()) / 2


def test_nan_is_named_by_cell(toy, tmp_path):
    class Broken(toy):
        def table(self, split):
            table = super().table(split)
            table.features[CELL][5, 2] = float("nan")
            return table

    with pytest.raises(NonFinite, match=rf"cell '{CELL}' has NaN or infinity in 1 samples, the first is 'train/5'"):
        run(toy, tmp_path, source=Broken(cells=(CELL,)))


@pytest.mark.parametrize("broken", ["val", "test"])
def test_nan_that_is_only_evaluated_is_named_by_cell_and_sample(toy, tmp_path, broken):
    class Broken(toy):
        def table(self, split):
            table = super().table(split)
            if split == broken:
                table.features[CELL][7, 2] = float("inf")
            return table

    with pytest.raises(NonFinite, match=rf"cell '{CELL}' has NaN or .* in 1 samples, the first is '{broken}/7'"):
        run(toy, tmp_path, source=Broken(cells=(CELL,)), max_epochs=1)


def test_constant_features_are_named_by_cell(toy, tmp_path):
    class Constant(toy):
        def table(self, split):
            table = super().table(split)
            table.features[CELL][:] = 3.0
            return table

    with pytest.raises(ConfigError, match=f"cell '{CELL}': .* constant"):
        run(toy, tmp_path, source=Constant(cells=(CELL,)))


@pytest.mark.parametrize("variant", ["batch_topk", "matryoshka", "jumprelu", "revelio_released"])
def test_every_variant_trains_and_comes_back_from_its_files(toy, tmp_path, variant):
    probe = import_module(f"diffprobe.probes.sae.{variant}").Config(k=3, n_latents=64, warmup_steps=5)
    module = run(toy, tmp_path, probe=probe, max_epochs=8)
    record = next(record for record in module.records("test") if record.name == "fvu")
    assert record.probe == variant and record.value < 1 and module.scores["test"]["l0"] > 0
    back = KSAE.from_pretrained(module.save(tmp_path)[0])
    x = toy().table("test").features[CELL]
    assert type(back) is type(module.sae) and back(x)[0].equal(module.sae(x)[0])


class Curves(lightning.Callback):
    """Collects what each step logs."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_a_run_records_what_it_measured_of_training_dictionary_and_rows(toy, tmp_path):
    curves = Curves()
    module = run(toy, tmp_path, callbacks=[curves])
    train = {record.name: record for record in module.records("train")}
    dead = train["windowed_dead_fraction"]
    assert dead.value == float(module.dead_latents.mask.double().mean()) and dead.n == 5 * 91
    assert dead.detail["window"] == 150 and train["dead_fraction"].detail["window"] == 91
    coherence = train["decoder_coherence"]
    unit = module.sae.W_dec.detach().double()
    cosines = (unit @ unit.T).abs() - torch.eye(32)
    assert coherence.value == pytest.approx(float(cosines.max()), abs=1e-6) and coherence.n == 32
    x = toy(cells=(CELL,)).table("train").features[CELL].double()
    assert train["gamma"].value == pytest.approx(float(x.mean(0).norm() / x.std(0, unbiased=False).norm()))
    histogram = train["dense_fraction"].detail["histogram"]
    assert sum(histogram["counts"]) + histogram["n_never"] == 32
    assert histogram["n_never"] / 32 == train["dead_fraction"].value
    assert train["mean_decoder_coherence"].value == pytest.approx(float(cosines.sum() / (32 * 31)), abs=1e-6)
    own = {"windowed_dead_fraction", "decoder_coherence", "mean_decoder_coherence"}
    assert {record.name for record in module.records("test")} == set(train) - own
    known = ["train/windowed_dead_fraction" in step for step in curves.steps]
    assert known == [False] * 10 + [True] * 20  # nine batches are 16 * 5 + 11 + 16 * 3 = 139 rows, ten 155


def test_a_run_shorter_than_the_window_warns_and_claims_nothing(toy, tmp_path):
    curves = Curves()
    with pytest.warns(
        UserWarning, match=r"dead_window=1000000 rows .* trains on 455 \(91 per epoch\), so AuxK never acts"
    ):
        module = run(toy, tmp_path, probe=Config(k=3, n_latents=32), callbacks=[curves])
    assert not any("windowed_dead_fraction" in record.name for record in module.records("train"))
    assert not any("train/windowed_dead_fraction" in step for step in curves.steps) and len(curves.steps) == 30


def test_a_run_as_long_as_the_window_does_not_warn(toy, tmp_path, recwarn):
    run(toy, tmp_path, probe=Config(k=3, n_latents=32, dead_window=5 * 91))
    assert not [str(warning.message) for warning in recwarn if "dead_window" in str(warning.message)]


def test_the_rate_of_the_first_step_is_one_part_of_the_warm_up(toy, tmp_path):
    class Rate(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates, probe = [], Config(k=3, n_latents=32, dead_window=60, warmup_steps=4, decay=0.0)
    run(toy, tmp_path, probe=probe, max_epochs=1, callbacks=[Rate()])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_weights_of_16_bits_are_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="precision=bf16-true"):
        run(toy, tmp_path, precision="bf16-true")


def test_a_config_names_its_variant():
    assert make_sae(Config(k=2, n_latents=8), 4, seed=0).variant == "topk"


def test_chosen_rows_depend_on_keys_and_seed_alone():
    x, keys = torch.arange(14.0).view(7, 2), [f"sample/{i}" for i in range(7)]

    def choose(rows, collective=SINGLE_PROCESS, seed=0):
        chosen = ChosenRows(5, seed=seed)
        for row in rows:  # one at a time: batches play no part
            chosen.update(x[row : row + 1], [keys[row]])
        return chosen.compute(collective)

    barrier, slots = Barrier(2), [x, x]

    def process(rank):
        def gather(values):
            slots[rank] = values
            barrier.wait()
            together = torch.cat(slots)
            barrier.wait()
            return together

        return choose(range(5) if rank else range(5, 7), Collective(gather=gather, size=2))  # unequal shares

    whole = choose(range(7))
    with ThreadPoolExecutor(2) as pool:
        assert all(found.equal(whole) for found in pool.map(process, range(2)))
    assert choose(reversed(range(7))).equal(whole) and not choose(range(7), seed=1).equal(whole)
    assert ChosenRows(0, seed=0).compute(SINGLE_PROCESS) is None


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_round_the_weights_are_refused(precision):
    with pytest.raises(ConfigError, match=f"precision={precision}") as error:
        check_precision(TrainerConfig(precision=precision))
    assert error.value.fix == "trainer.precision=bf16-mixed"


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_other_precisions_pass(precision):
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
        UserWarning, match="dead_window=1000000 rows .* trains on 50000 .5000 per epoch., so AuxK never"
    ) as w:
        warn_of_window(Config(), n_rows=5_000, n_trained=50_000)
    assert str(w[0].message).endswith("A window that fits: probe.params.dead_window=20000")
    with pytest.warns(UserWarning, match=r"per epoch\), so no windowed_dead_fraction .*dead_window=1$"):
        warn_of_window(Config(aux_weight=0.0), n_rows=3, n_trained=3)
