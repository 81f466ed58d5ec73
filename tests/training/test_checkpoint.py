import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.probes.classifier import linear
from diffprobe.probes.sae import batch_topk, jumprelu, matryoshka, topk
from diffprobe.training.checkpoint import find_checkpoint, forget, note_inputs, require_same_inputs
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet

CELL = "mid_block@t10:empty:mean"
VARIANTS = {"topk": topk, "batch_topk": batch_topk, "matryoshka": matryoshka, "jumprelu": jumprelu}


class Interrupt(lightning.Callback):
    """Stops the run after some steps, as a job's end would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def make(kind, settings):
    if kind in VARIANTS:
        probe = VARIANTS[kind].Config(k=3, n_latents=32, dead_window=100, k_aux=4)
        return SparseAutoencoderModule(probe, cell=CELL, d_in=12, settings=settings)
    classes = {"label": ("a", "b", "c", "d")}
    return ClassifierModule("linear", linear.Config(), widths={CELL: 12}, classes=classes, settings=settings)


AFTER_AN_EPOCH, WITHIN_ONE, AT_ITS_LAST_STEP = (0, 14, 12), (4, 11, 8), (3, 14, 12)
"""An epoch has 6 steps: a checkpoint every so many (0: after an epoch), where the run stops, where it continues."""


@pytest.mark.parametrize(
    ("kind", "when"),
    [(kind, when) for kind in ("topk", "classifier") for when in (AFTER_AN_EPOCH, WITHIN_ONE, AT_ITS_LAST_STEP)]
    + [
        ("batch_topk", WITHIN_ONE),
        ("matryoshka", WITHIN_ONE),
        ("jumprelu", WITHIN_ONE),
        ("jumprelu", AT_ITS_LAST_STEP),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(toy, tmp_path, kind, when):
    every, stop, continued = when
    settings = TrainerConfig(accelerator="cpu", max_epochs=4, checkpoint_every_steps=every, enable_progress_bar=False)
    with quiet():
        whole = make(kind, settings)
        make_trainer(settings, run_dir=tmp_path / "whole").fit(whole, datamodule=toy(cells=(CELL,)))
        cut = tmp_path / "cut"
        with pytest.raises(RuntimeError, match="stopped"):
            make_trainer(settings, run_dir=cut, callbacks=[Interrupt(stop)]).fit(
                make(kind, settings), datamodule=toy(cells=(CELL,))
            )
        last = find_checkpoint(cut, resume=True)
        assert torch.load(last, weights_only=True)["global_step"] == continued
        second = make(kind, settings)
        trainer = make_trainer(settings, run_dir=cut)
        trainer.fit(second, datamodule=toy(cells=(CELL,)), ckpt_path=last, weights_only=True)
    assert trainer.global_step == 24 and trainer.current_epoch == 4
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert one.equal(other), name


def test_a_finished_or_unwanted_checkpoint_is_not_continued(tmp_path):
    assert find_checkpoint(tmp_path, resume=True) is None
    (tmp_path / "last.ckpt").touch()
    assert find_checkpoint(tmp_path, resume=True) == tmp_path / "last.ckpt"
    assert find_checkpoint(tmp_path, resume=False) is None
    (tmp_path / "result.json").touch()
    assert find_checkpoint(tmp_path, resume=True) is None


def test_results_and_checkpoints_are_forgotten_and_nothing_else(tmp_path):
    for name in ("result.json", "last.ckpt", "hpc_ckpt_1.ckpt", "hpc_ckpt_12.ckpt", "report.html"):
        (tmp_path / name).touch()
    forget(tmp_path, tmp_path / "not-there")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_what_a_run_rests_on_must_be_what_it_started_with(tmp_path):
    with pytest.raises(ConfigError, match="has no inputs.json"):
        require_same_inputs(tmp_path, {"input/shards": "a"})
    note_inputs(tmp_path, {"input/shards": "a", "input/start": "b"})
    require_same_inputs(tmp_path, {"input/start": "b", "input/shards": "a"})
    for now in ({"input/shards": "a", "input/start": "c"}, {"input/shards": "a"}):
        with pytest.raises(ConfigError, match="changed since: start"):
            require_same_inputs(tmp_path, now)
    for damage in ("", "{", '{"header": {"kind": "run_inputs", "schema_version": 1}, "inputs": 3}'):
        (tmp_path / "inputs.json").write_text(damage)
        with pytest.raises(SchemaError, match=r"inputs.json(.|\n)*trainer.resume=false"):
            require_same_inputs(tmp_path, {})
