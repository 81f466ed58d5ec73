import sys
import warnings

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.signals import Terminated
from diffprobe.training.trainer import honest_ends, make_trainer, quiet


def test_config_reaches_the_trainer(tmp_path):
    config = TrainerConfig(accelerator="cpu", max_epochs=3, max_steps=7, precision="bf16-mixed", gradient_clip=0.5)
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
    assert (trainer.max_epochs, trainer.max_steps, trainer.precision) == (3, 7, "bf16-mixed")
    assert trainer.gradient_clip_val == 0.5 and trainer.num_sanity_val_steps == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the errors of a machine without GPU")
@pytest.mark.parametrize(
    ("settings", "words"), [({"accelerator": "gpu"}, "no GPU"), ({"precision": "16-mixed"}, "GPU")]
)
def test_missing_hardware_is_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        make_trainer(TrainerConfig(**settings), run_dir=tmp_path)


@pytest.mark.parametrize("native", [False, True])
def test_slow_bfloat16_on_a_processor_without_it_is_said(tmp_path, caplog, monkeypatch, native):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    for precision in ("32-true", "bf16-mixed"):
        caplog.clear()
        make_trainer(TrainerConfig(accelerator="cpu", precision=precision), run_dir=tmp_path)
        said = [text for text in caplog.messages if "no instructions for bfloat16" in text]
        assert len(said) == (precision == "bf16-mixed" and not native)


def test_unknown_and_unusable_strategies_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown trainer.strategy 'dpp'(.|\n)*ddp"):
        make_trainer(TrainerConfig(accelerator="cpu", strategy="dpp"), run_dir=tmp_path)
    with pytest.raises(ConfigError, match="cannot train with these settings of trainer: .*[Dd]eep[Ss]peed|fsdp|FSDP"):
        make_trainer(TrainerConfig(accelerator="cpu", strategy="fsdp"), run_dir=tmp_path)


def test_several_devices_in_a_notebook_are_refused(tmp_path, monkeypatch):
    from lightning.pytorch.trainer.connectors import accelerator_connector

    config = TrainerConfig(accelerator="cpu", devices=2)
    with quiet():
        make_trainer(config, run_dir=tmp_path)
        monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
        with pytest.raises(ConfigError, match="trainer.devices=2 in a notebook"):
            make_trainer(config, run_dir=tmp_path)


def test_quiet_keeps_other_warnings():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("The 'train_dataloader' does not have many workers which may", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in seen] == ["something else"]


def test_arguments_of_the_trainer_in_the_environment_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    with pytest.raises(ConfigError, match="PL_TRAINER_LIMIT_TRAIN_BATCHES"):
        make_trainer(TrainerConfig(accelerator="cpu"), run_dir=tmp_path)


def test_lightnings_ends_of_signals_are_given_their_own_exceptions():
    def as_lightning_does():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(KeyboardInterrupt), honest_ends():
        as_lightning_does()
    with pytest.raises(Terminated), honest_ends():
        raise SIGTERMException
    with pytest.raises(SystemExit, match="3"), honest_ends():
        sys.exit(3)
