"""A tiny LLaVA learns captions; what is frozen stays as it is; a resumed run equals an uninterrupted one."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from diffprobe.core.errors import SampleError
from diffprobe.core.result import read_result
from diffprobe.generative.visual_tower.module import VisualTowerModule, rows_of_other_groups
from diffprobe.generative.visual_tower.network import DiffusionLlava
from diffprobe.runs.train_generative import train_generative
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.checkpoint_file import read_checkpoint
from diffprobe.training.trainer import make_trainer, quiet


def fit(config, folder, *, until=-1, checkpoint=None) -> VisualTowerModule:
    settings = dataclasses.replace(config.trainer, max_steps=until, checkpoint_every_steps=3)
    module, data = config.make()
    with quiet():
        trainer = make_trainer(settings, run_dir=folder, accumulate_grad_batches=module.accumulation)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.slow
def test_a_run_learns_ablates_and_writes_a_model_that_generates(make_config, tmp_path) -> None:
    result = train_generative(make_config(output=str(tmp_path), language_model_alone=True))
    found = read_result(result)
    records = {record.name: record for record in found.metrics}
    assert found.kind == "train_visual_tower" and {"input/backbone", "input/shards"} <= set(found.artifacts)
    names = [f"{tokens}_{change}" for tokens in ("diffusion_tokens", "clip_tokens", "image_tokens")
             for change in ("mean", "shuffled")]  # fmt: skip
    assert set(records) == {"loss", "caption_loss", *(f"cost_of_{name}" for name in names)}
    whole = records["caption_loss"]
    assert set(whole.controls) == {"no_image_tokens", "language_model_alone"} and whole.n == 4
    assert whole.value == pytest.approx(records["loss"].value, rel=1e-4)
    for name in names:
        record = records[f"cost_of_{name}"]
        assert record.value == pytest.approx(record.detail["loss"] - whole.value, abs=1e-9)
        assert record.detail["interval"][0] <= record.value <= record.detail["interval"][1]

    weights = result.parent / "weights"
    assert not [path for path in weights.rglob("*") if path.suffix in (".bin", ".pt")]
    llava = DiffusionLlava.from_pretrained(weights, local_files_only=True).eval()
    config = llava.config
    ids = torch.tensor([[0, *[config.image_token_id] * config.image_seq_length]])
    maps = torch.randn(1, config.diffusion_channels, 4, 4)
    pixels = torch.randn(1, 3, 16, 16)
    made = llava.generate(
        input_ids=ids, pixel_values=pixels, diffusion_features=maps, max_new_tokens=3, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert made.shape == (1, ids.shape[1] + 3)


@pytest.mark.parametrize("train", ["all", "projectors"])
def test_only_what_is_trained_changes_and_has_gradients(train, make_config, tiny_parts, tmp_path) -> None:
    from diffprobe.generative.visual_tower.assembly import TinyShape

    parts = {name: str(folder) for name, folder in tiny_parts.items()}
    config = make_config(train=train, **parts, tiny=TinyShape())
    before = {name: value.clone() for name, value in config.make()[0].llava.state_dict().items()}
    module = fit(config, tmp_path, until=3)
    assert not any("extractor" in name or "unet" in name for name, _ in module.named_parameters())
    trained = ("model.diffusion_projector", "model.multi_modal_projector")
    trained += ("model.language_model", "lm_head") if train == "all" else ()
    changed = {name for name, value in module.llava.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(trained) for name in changed)
    for name, parameter in module.llava.named_parameters():
        assert parameter.requires_grad == name.startswith(trained)
        assert parameter.requires_grad or parameter.grad is None
    assert all(any(name.startswith(part) for name in changed) for part in trained)
    saved = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert not [name for name in saved if "vision_tower" in name]


@pytest.mark.slow
def test_the_loss_falls(make_config, tmp_path) -> None:
    config = make_config()
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_epochs=8))
    module, data = config.make()
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=tmp_path)
        before = trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"]
        trainer.fit(module, datamodule=data)
        after = trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"]
    assert after < 0.8 * before


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(make_config, tmp_path) -> None:
    config = make_config(language_model_alone=True)
    whole = fit(config, tmp_path / "whole", until=6).state_dict()
    fit(config, tmp_path / "cut", until=3)
    # the schedule is that of the whole run: `max_steps` of the configuration is unset
    resumed = fit(config, tmp_path / "cut", until=6, checkpoint=find_checkpoint(tmp_path / "cut", resume=True))
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.items())


def test_the_loss_of_a_caption_is_its_own_mean_and_does_not_depend_on_the_batch(make_config) -> None:
    module, data = make_config().make()
    batch = data.read(next(iter(data.val_dataloader())))
    with torch.no_grad():
        visual = module.llava.eval().model.visual_tokens(module.pixels(batch.images), batch.maps)
        losses = module.caption_losses(batch.captions, visual)
        for i, caption in enumerate(batch.captions):
            tokens = module.sequences([caption])
            logits = module.llava(
                input_ids=tokens.input_ids, pixel_values=module.pixels(batch.images[i : i + 1]),
                diffusion_features=batch.maps[i : i + 1],
            ).logits  # fmt: skip
            expected = functional.cross_entropy(logits[0, :-1], tokens.labels[0, 1:])
            torch.testing.assert_close(losses[i], expected, atol=1e-5, rtol=1e-4)


def test_captions_that_are_too_long_stop_the_run_before_training(make_config) -> None:
    with pytest.raises(SampleError, match=r"16 of 16 captions are longer than max_length=12"):
        make_config(max_length=12).make()


def test_shuffled_images_are_of_other_groups_and_each_is_taken_once() -> None:
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + list("defg")
    rows = rows_of_other_groups(groups, seed=0).tolist()
    assert sorted(rows) == list(range(len(groups)))
    assert all(groups[row] != group for row, group in zip(rows, groups, strict=True))
    assert rows == rows_of_other_groups(groups, seed=0).tolist() != rows_of_other_groups(groups, seed=1).tolist()
