"""CleanDIFT on a tiny pipeline: heads that start as the identity, a teacher that stays, a folder that can be read."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.parse import parse
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import BadTimestep, ConfigError, RunFailed, UnknownTap, WeightsMismatch
from diffprobe.core.result import read_result
from diffprobe.generative.cleandift import CleanDiftModule, CleanDiftTraining, TimedHead, misalignment, stratified
from diffprobe.runs.train_generative import train_generative
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

TAPS = ("mid_block", "up_blocks.1")


@pytest.fixture(scope="module")
def config(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanDiftTraining:
    return CleanDiftTraining(
        experiment="tiny/cleandift",
        teacher=str(tiny_sd),
        data=DataConfig(path=str(tiny_shards), batch_size=4),
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=12, enable_progress_bar=False, log_every_steps=1, learning_rate=3e-4
        ),
        logger=LoggerConfig(kind="none"),
        taps=TAPS,
        head_width=32,
        drop_captions=0.5,
        warmup_steps=1,
        output=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def trained(config: CleanDiftTraining) -> Path:
    return train_generative(config).parent


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def features(path: Path, images: Tensor, **options: Any) -> dict[str, Tensor]:
    settings = {"taps": list(TAPS), "timesteps": [0], "pool": "none", "device": "cpu", **options}
    return DiffusionFeatures.from_pretrained(str(path), **settings)(images, keys=["a", "b"])


@pytest.mark.slow
def test_it_learns_and_the_folder_is_a_pipeline_that_differs_in_the_unet_alone(trained: Path, tiny_sd: Path) -> None:
    result = read_result(trained / "result.json")
    values = {record.name: record.value for record in result.metrics}
    assert values["loss"] < values["teacher_loss"]
    assert "input/teacher" in result.artifacts
    before, after = digests(tiny_sd), digests(trained / "weights")
    parts = ("vae/", "text_encoder/", "tokenizer/", "scheduler/", "model_index", "unet/config")
    assert all(after[name] == digest for name, digest in before.items() if name.startswith(parts))
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert after[weights] != before[weights]


@pytest.mark.slow
def test_its_features_of_the_clean_image_do_not_depend_on_noise(trained: Path, tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    one = features(trained / "weights", images, clean_input=True, seed=0)
    other = features(trained / "weights", images, clean_input=True, seed=1)
    assert all(torch.equal(one[cell], other[cell]) for cell in one)
    own = features(tiny_sd, images, clean_input=True)
    assert all(float((one[cell] - own[cell]).abs().max()) > 1e-3 for cell in one)
    assert StableDiffusionPipeline.from_pretrained(trained / "weights", safety_checker=None).unet is not None


def test_heads_start_as_the_identity_and_depend_on_the_timestep_later() -> None:
    head, x, t = TimedHead(6, 8), torch.randn(3, 6, 4, 4), torch.tensor([1, 500, 999])
    assert torch.equal(head(x, t), x)
    torch.nn.init.normal_(head.leave.weight)
    found = head(x[:1].expand(3, -1, -1, -1), t)
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    torch.testing.assert_close(head(x, t)[:, :, 2, 1], head(x[:, :, 2:3, 1:2], t)[:, :, 0, 0])  # place by place


def test_at_the_start_the_loss_is_the_plain_one_and_only_student_and_heads_have_gradients(
    config: CleanDiftTraining,
) -> None:
    module = CleanDiftModule(config)
    clean, generator = torch.randn(2, 4, 16, 16), torch.Generator().manual_seed(0)
    timesteps, noise = stratified(2, 3, 1000, generator), torch.randn(3, 2, 4, 16, 16)
    found = module.losses(clean, ["", "a red circle"], timesteps, noise)
    assert found.shape == (2, 6)
    schedule, unet = module.spec.schedule, module.teacher.denoiser
    kept: dict[str, Tensor] = {}
    handles = [
        unet.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: kept.__setitem__(path, out[0] if isinstance(out, tuple) else out)
        )
        for path in module.paths
    ]
    with torch.no_grad():
        for image, caption in enumerate(["", "a red circle"]):
            condition = module.teacher.encode_conditions([caption])
            for row in range(3):
                t = timesteps[row, image : image + 1]
                maps = []
                for x, at in ((schedule.add(clean[image : image + 1], noise[row, image : image + 1], t), t), (
                    clean[image : image + 1], torch.zeros(1, dtype=torch.long)
                )):  # fmt: skip
                    module.teacher.denoise(x, at, condition)
                    maps.append(dict(kept))
                for tap, path in enumerate(module.paths):
                    flat = [one[path].flatten(2) for one in maps]
                    cosine = torch.einsum("bcp,bcp->bp", *flat) / (flat[0].norm(dim=1) * flat[1].norm(dim=1))
                    assert float(found[tap, 2 * row + image]) == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
    for handle in handles:
        handle.remove()
    found.mean().backward()
    assert not any(value.requires_grad for value in module.teacher.denoiser.parameters())
    assert any(value.grad is not None for value in module.student.parameters())
    assert {name.partition(".")[0] for name in module.state_dict()} == {"student", "heads"}


def test_timesteps_are_one_in_each_part_of_the_schedule() -> None:
    found = stratified(500, 4, 1000, torch.Generator().manual_seed(0))
    for row, drawn in enumerate(found):
        assert 250 * row <= int(drawn.min()) and int(drawn.max()) < 250 * (row + 1)
    assert float(misalignment(torch.ones(1, 3, 2, 2), 5 * torch.ones(1, 3, 2, 2))) == pytest.approx(0, abs=1e-6)


class Interrupt(lightning.Callback):
    """Stops the run after three steps, as a job's end would."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(config: CleanDiftTraining, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config, trainer=dataclasses.replace(config.trainer, max_epochs=2, checkpoint_every_steps=1)
    )

    def run(folder: Path, **options: Any) -> dict[str, Tensor]:
        module, data = config.make()
        with quiet():
            trainer = make_trainer(config.trainer, run_dir=folder, **options)
            trainer.fit(module, datamodule=data, ckpt_path=find_checkpoint(folder, resume=True))
        return module.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "parts", callbacks=[Interrupt()])
    found = run(tmp_path / "parts")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_teacher_that_changed_is_not_saved(config: CleanDiftTraining, tmp_path: Path) -> None:
    module = CleanDiftModule(config)
    with torch.no_grad():
        next(module.teacher.denoiser.parameters()).add_(1)
    with pytest.raises(RunFailed, match="teacher"):
        module.save(tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("changes", "error", "fact"),
    [
        ({"taps": []}, ConfigError, "taps"),
        ({"taps": ["mid_block/probs"]}, ConfigError, "slash"),
        ({"taps": ["middle"]}, UnknownTap, "middle"),
        ({"n_strata": 0}, ConfigError, "n_strata"),
        ({"timestep": -1}, ConfigError, "timestep"),
        ({"timestep": 1000}, BadTimestep, "1000"),
        ({"drop_captions": 1.5}, ConfigError, "drop_captions"),
        ({"teacher": "pixels"}, WeightsMismatch, "pixels"),
    ],
)
def test_wrong_settings_are_refused(
    changes: dict[str, Any], error: type[Exception], fact: str, config: CleanDiftTraining, tiny_sd: Path
) -> None:
    tree = {"experiment": "x", "teacher": str(tiny_sd), "data": {"path": "y"}, "trainer": {}, "logger": {}}
    with pytest.raises(error, match=fact):
        CleanDiftModule(parse(CleanDiftTraining, {**tree, **changes}))


def test_a_backbone_without_texts_takes_no_captions(config: CleanDiftTraining, tmp_path: Path) -> None:
    from diffprobe.backbones.families import dit

    dit.tiny(tmp_path)
    other = dataclasses.replace(config, teacher=str(tmp_path), taps=("transformer_blocks.1",))
    with pytest.raises(ConfigError, match="captions"):
        CleanDiftModule(other)
    assert CleanDiftModule(dataclasses.replace(other, drop_captions=1.0)).paths == ("transformer_blocks.1",)
