"""A tiny denoiser with an alignment head: losses against plain formulas, what may not enter, planted classes."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import EmptyClass
from diffprobe.core.rng import derive_seed
from diffprobe.generative.alignment import FOLDER, AlignmentConfig
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.image_table import ImageTable, ImageTableData
from diffprobe.generative.joint_denoiser import JointDenoiserModule
from diffprobe.probes.caption import CaptionRegressor, diffdis
from diffprobe.training.caption_scores import ScoredSplit, chance, score_split
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

SHAPE = DenoiserShape(
    channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
    text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
)  # fmt: skip
SMALL = AlignmentConfig(width=16, heads=2, blocks=2, weight=0.5)


@pytest.fixture(scope="module")
def config(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> DenoiserTraining:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    vae: Any = AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=5.0,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    plain = DenoiserTraining(
        experiment="tiny",
        autoencoder=str(folder / "vae"),
        data=DataConfig(path=str(tiny_shards), batch_size=8),
        model=SHAPE,
        trainer=TrainerConfig(accelerator="cpu", max_epochs=1, enable_progress_bar=False, log_every_steps=1),
        logger=LoggerConfig(kind="none"),
        warmup_steps=1,
    )
    DenoiserModule(plain).save(folder / "texts")
    return dataclasses.replace(plain, text_encoder=str(folder / "texts"), text_learning_rate=0.0, alignment=SMALL)


@pytest.fixture
def made(config: DenoiserTraining) -> tuple[Any, ImageTableData]:
    return config.make()


def table_of(captions: list[tuple[str, ...]]) -> ImageTable:
    n = len(captions)
    return ImageTable(torch.zeros(n, 3, 16, 16, dtype=torch.uint8), [str(i) for i in range(n)], captions, [{}] * n)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_info_nce(found: Tensor, queries: Tensor, captions: list[str], scale: float) -> float:
    """Return the symmetric InfoNCE with loops; equal captions are left out of the sums."""
    n, total = len(captions), 0.0

    def cosine(image: int, caption: int) -> float:
        one, other = found[image].double(), queries[caption].double()
        return float(one @ other / one.norm() / other.norm())

    for i in range(n):
        others = [j for j in range(n) if j == i or captions[j] != captions[i]]
        total -= scale * cosine(i, i) - math.log(sum(math.exp(scale * cosine(i, j)) for j in others))
        total -= scale * cosine(i, i) - math.log(sum(math.exp(scale * cosine(j, i)) for j in others))
    return total / (2 * n)


@torch.no_grad()
def test_the_loss_is_that_of_plain_formulas(made: tuple[Any, ImageTableData]) -> None:
    module, data = made
    captions = [own[0] for own in data.train.captions[:5]]
    captions[3] = captions[1]
    clean, seeds = draw(5, 2, 8, 8), [11, 12, 13, 14, 15]
    tokens = module.tokenizer([""], padding="max_length", max_length=16, return_tensors="pt").input_ids
    context = module.text_encoder(tokens).last_hidden_state
    kept: list[Tensor] = []
    handle = module.unet.mid_block.register_forward_hook(lambda *call: kept.append(call[2]))
    for row in range(5):
        module.unet(clean[row : row + 1], torch.zeros(1, dtype=torch.long), context)
    handle.remove()

    def mean_state(caption: str) -> Tensor:
        ids = module.tokenizer(caption).input_ids
        padded = ids + [module.tokenizer.pad_token_id] * (16 - len(ids))
        return module.text_encoder(torch.tensor([padded])).last_hidden_state[0, 1 : len(ids)].mean(0)

    every = torch.stack([mean_state(c) for c in sorted({c for own in data.train.captions for c in own})]).double()
    queries = torch.stack([mean_state(caption) for caption in captions]).double() - every.mean(0)
    queries = (queries / every.std(0, unbiased=False)).float()
    found = diffdis.embed(module.head, torch.cat(kept).flatten(1), queries, seeds)
    expected = plain_info_nce(found, queries, captions, 1 / SMALL.temperature)
    assert float(module.alignment_loss(clean, captions, seeds)) == pytest.approx(expected, rel=1e-3)
    mixed = plain_info_nce(found, queries, [str(row) for row in range(5)], 1 / SMALL.temperature)
    assert abs(mixed - expected) > 1e-2  # shows that equal captions are left out as negatives


def test_two_captions_and_right_predictions_have_the_loss_by_hand(
    config: DenoiserTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two standardised vectors are opposite: logits are +-2 at a temperature of 0.5, so the loss is log(1 + e^-4)."""
    two = dataclasses.replace(config, alignment=dataclasses.replace(SMALL, temperature=0.5))
    module = JointDenoiserModule(two)
    module.set_classes(table_of([("red cat",), ("blue dog",)]))
    monkeypatch.setattr(diffdis, "embed", lambda head, features, captions, seeds: 3 * captions)
    loss = module.alignment_loss(draw(2, 2, 8, 8), ["red cat", "blue dog"], [0, 1])
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-4)
    monkeypatch.setattr(diffdis, "embed", lambda head, features, captions, seeds: -captions)
    loss = module.alignment_loss(draw(2, 2, 8, 8), ["red cat", "blue dog"], [0, 1])
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(4)), rel=1e-4)


@torch.no_grad()
def test_the_text_condition_never_changes_the_predicted_vector(made: tuple[Any, ImageTableData]) -> None:
    """The U-Net reads the empty caption for every image; captions of the batch would change its mid block."""
    module, data = made
    clean, captions = draw(3, 2, 8, 8), [own[0] for own in data.train.captions[:3]]
    contexts: list[Tensor] = []
    handle = module.unet.register_forward_pre_hook(lambda unet, args: contexts.append(args[2]))
    module.alignment_loss(clean, captions, [1, 2, 3])
    module.alignment_loss(clean, captions[::-1], [1, 2, 3])
    handle.remove()
    empty = module.text_encoder(module.token_ids([""])).last_hidden_state
    assert all(torch.equal(context, empty.expand(3, -1, -1)) for context in contexts) and len(contexts) == 2

    features = module.image_features(clean)
    noised, timesteps = draw(3, 16, seed=4), torch.tensor([3, 400, 999])
    before = module.head.denoise(noised, timesteps, module.head.image_tokens(features))
    module.errors(clean, captions, timesteps, draw(3, 2, 8, 8, seed=5))  # a pass of generation under captions
    after = module.head.denoise(noised, timesteps, module.head.image_tokens(module.image_features(clean)))
    assert torch.equal(before, after)
    leak: list[Tensor] = []
    handle = module.unet.mid_block.register_forward_hook(lambda *call: leak.append(call[2]))
    module.unet(clean, torch.zeros(3, dtype=torch.long), module.text_encoder(module.token_ids(captions))[0])
    handle.remove()
    assert (leak[0].flatten(1) - features).abs().max() > 1e-3


def step_gradients(module: DenoiserModule, data: ImageTableData) -> dict[str, Tensor]:
    """Return the gradients of the first training step of a module."""
    trainer: Any = type("Trainer", (), {"datamodule": data, "global_step": 0})()
    module._trainer = trainer
    for name in ("log", "log_dict"):
        setattr(module, name, lambda *args, **kwargs: None)
    module.training_step(torch.arange(8), 0).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_generation_plus_lambda_times_that_of_alignment(config: DenoiserTraining) -> None:
    def gradients(alignment: AlignmentConfig | None) -> dict[str, Tensor]:
        return step_gradients(*dataclasses.replace(config, alignment=alignment).make())  # type: ignore[arg-type]

    joint, generation = gradients(SMALL), gradients(None)
    alignment = gradients(dataclasses.replace(SMALL, generation=False, weight=1.0))
    assert not any(name.startswith(("unet.up_blocks", "unet.conv_out")) for name in alignment)
    shared = "unet.down_blocks.0.resnets.0.conv1.weight"
    assert alignment[shared].abs().sum() > 0 and generation[shared].abs().sum() > 0
    for name in (shared, "unet.mid_block.resnets.1.conv2.weight"):
        torch.testing.assert_close(joint[name], generation[name] + 0.5 * alignment[name], atol=1e-5, rtol=1e-3)
    for name in ("unet.conv_out.weight", "unet.up_blocks.0.resnets.0.conv1.weight"):
        torch.testing.assert_close(joint[name], generation[name], atol=1e-6, rtol=1e-4)
    of_head = [name for name in joint if name.startswith("aligner")]
    assert of_head and not any(name.startswith("aligner") for name in generation)
    assert not any(name.startswith("text_encoder") for name in joint)


def test_lambda_0_is_the_training_without_alignment(config: DenoiserTraining) -> None:
    nothing, zero = (dataclasses.replace(config, alignment=one) for one in (None, AlignmentConfig(weight=0.0)))
    assert type(zero.make()[0]) is DenoiserModule
    one, other = (step_gradients(*config.make()) for config in (nothing, zero))  # type: ignore[arg-type]
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def planted(n: int, *, seed: int, informative: bool = True) -> tuple[Tensor, list[int]]:
    """Return latents of 8 classes, each with a pattern of its own in noise, and the class of each."""
    classes = [row % 8 for row in range(n)]
    patterns = draw(8, 2, 8, 8, seed=77)
    return draw(n, 2, 8, 8, seed=seed) * 0.7 + informative * patterns[classes], classes


@pytest.mark.slow
@pytest.mark.parametrize("informative", [True, False])
def test_planted_classes_are_retrieved_and_shuffled_images_are_at_chance(
    config: DenoiserTraining, informative: bool
) -> None:
    """The loss must find classes that are in the latents, through the U-Net, and nothing where there are none."""
    words = ["red", "blue", "green", "black", "white", "pink", "grey", "gold"]
    names = [f"{word} thing" for word in words]
    module = JointDenoiserModule(config)
    module.set_classes(table_of([(name,) for name in names]))
    optimizer = torch.optim.AdamW(module.trained_parts()[0].parameters(), lr=3e-3)
    for step in range(60):
        clean, classes = planted(32, seed=step, informative=informative)
        loss = module.alignment_loss(clean, [names[k] for k in classes], [derive_seed("t", step, k) for k in range(32)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean, classes = planted(160, seed=1000, informative=informative)
    with torch.no_grad():
        split = ScoredSplit(
            features=module.image_features(clean), captions=module._encode(names), caption=torch.tensor(classes)
        )
        shuffled = dataclasses.replace(
            split, features=split.features[torch.randperm(160, generator=torch.Generator().manual_seed(0))]
        )
        level = chance(split)["caption_recall_1"]
        assert level == 1 / 8
        for inference in diffdis.INFERENCES:
            module.head.inference = inference  # type: ignore[assignment]
            found, null = (score_split(module.aligner, one, (1, 5)) for one in (split, shuffled))
            value = found["caption_recall_1"].value
            assert value > 0.8 if informative else abs(value - level) < 0.1, (inference, value)
            assert abs(null["caption_recall_1"].value - level) < 0.1
            assert found["caption_recall_5"].value >= value


class Interrupt(lightning.Callback):
    """Stops the run after four steps, as a job's end would."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("generation", [True, False])
def test_resumed_equals_uninterrupted_bit_for_bit(config: DenoiserTraining, tmp_path: Path, generation: bool) -> None:
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(SHAPE, dropout=0.3),
        trainer=dataclasses.replace(config.trainer, max_epochs=3, checkpoint_every_steps=1),
        alignment=dataclasses.replace(SMALL, generation=generation),
    )

    def fit(folder: Path, checkpoint: Any = None, callbacks: tuple[Any, ...] = ()) -> dict[str, Tensor]:
        module, data = config.make()
        with quiet():
            trainer = make_trainer(config.trainer, run_dir=folder, callbacks=callbacks)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return module.state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "cut", callbacks=(Interrupt(),))
    resumed = fit(tmp_path / "cut", checkpoint=find_checkpoint(tmp_path / "cut", resume=True))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    module, _ = config.make()
    start = module.state_dict()
    assert not torch.equal(start["unet.conv_in.weight"], whole["unet.conv_in.weight"])
    assert torch.equal(start["unet.conv_out.weight"], whole["unet.conv_out.weight"]) != generation


def test_a_run_logs_both_losses_and_saves_the_head_beside_a_pipeline(config: DenoiserTraining, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    module: Any
    module, data = config.make()
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=tmp_path / "run")
        trainer.fit(module, datamodule=data)
    assert {"train/loss", "train/alignment", "val/mse", "val/alignment"} <= set(trainer.callback_metrics)
    assert module.facts["passes"] == {"forward": 1, "alignment": 1}
    flops = module.facts["flops_per_sample"]
    assert 0 < flops["alignment"] < flops["forward"]
    module.save(tmp_path / "weights")
    found = CaptionRegressor.from_pretrained(tmp_path / "weights" / FOLDER)
    assert found.cell == "mid_block@t0.empty.grid4" and found.text_encoder == config.text_encoder
    state = module.aligner.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    StableDiffusionPipeline.from_pretrained(tmp_path / "weights", safety_checker=None)


def test_training_images_or_a_batch_with_one_caption_are_refused(
    config: DenoiserTraining, made: tuple[Any, ImageTableData]
) -> None:
    module, _ = made
    with pytest.raises(EmptyClass, match=r"a batch has one caption \('red'\) for 3 samples"):
        module.alignment_loss(draw(3, 2, 8, 8), ["red"] * 3, [0, 1, 2])
    with pytest.raises(EmptyClass, match=r"split 'train' has one caption \('red'\)"):
        JointDenoiserModule(config).set_classes(table_of([("red",)] * 4))
