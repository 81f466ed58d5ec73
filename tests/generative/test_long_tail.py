"""Long-tailed subsets and captions by class, and a denoiser trained on them with each class-contrast term."""

import dataclasses
from collections import Counter

import lightning
import pytest
import torch
from diffusers import UNet2DConditionModel

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, SampleError, UnknownName
from diffprobe.core.registry import REGULARIZERS
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.image_table import ImageTable
from diffprobe.generative.long_tail import (
    ClassesConfig,
    class_counts,
    class_numbers,
    exponential_counts,
    long_tailed_rows,
    shots,
    training_classes,
)
from diffprobe.generative.low_rank_reserve import without
from diffprobe.generative.regularizers.base import RegularizerConfig
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet


def table(per_role=200, roles=("cook", "judge", "sailor")):
    """Images of some roles, in groups of two."""
    attributes = [{"role": role, "scene": f"{role}{i // 2}"} for i in range(per_role) for role in roles]
    return ImageTable(
        images=torch.zeros(len(attributes), 3, 2, 2, dtype=torch.uint8),
        keys=[f"k{n}" for n in range(len(attributes))],
        captions=[("a caption",)] * len(attributes),
        attributes=attributes,
    )


def test_counts_fall_exponentially_to_the_imbalance():
    counts = exponential_counts(2000, 24, 0.01)
    assert counts[0] == 2000 and counts[-1] == 20
    ratios = [second / first for first, second in zip(counts, counts[1:], strict=False)]
    assert ratios == pytest.approx([0.01 ** (1 / 23)] * 23, rel=0.03)


def test_the_subset_is_seeded_and_has_the_counts():
    config = ClassesConfig(attribute="role", imbalance=0.01, min_images=1)
    subset = config.training_table(table())
    assert list(class_counts(subset, "role").values()) == [200, 20, 2]
    assert subset.keys == config.training_table(table()).keys
    others = [dataclasses.replace(config, seed=seed).training_table(table()) for seed in range(1, 8)]
    assert any(other.keys != subset.keys for other in others)
    assert len({next(iter(class_counts(other, "role"))) for other in others}) > 1  # the head is not always one class


def test_groups_are_taken_whole():
    config = ClassesConfig(attribute="role", imbalance=0.1, min_images=1, group_by="scene", max_images=101)
    subset = config.training_table(table())
    assert set(Counter(sample["scene"] for sample in subset.attributes).values()) == {2}
    assert list(class_counts(subset, "role").values()) == [100, 32, 10]


def test_captions_are_those_of_the_classes_and_without_imbalance_all_images_stay():
    config = ClassesConfig(attribute="role", template="a {value} stands")
    assert long_tailed_rows(table(), config) is None
    found = config.training_table(table())
    assert len(found) == 600 and found.captions[1] == ("a judge stands",)


def test_class_numbers_leave_out_dropped_captions():
    found = table(30)
    classes = training_classes(found, "role")
    assert classes.names == ("cook", "judge", "sailor")
    assert class_numbers(found, [2, 1, 0], ["sailor", "", "cook"], classes).tolist() == [2, -1, 0]


def test_a_tail_that_is_too_small_is_named():
    with pytest.raises(EmptyClass, match=r"has 2 training images.*min_images=20"):
        ClassesConfig(attribute="role", imbalance=0.01).training_table(table())


def test_what_cannot_be_conditioned_on_is_refused():
    config = ClassesConfig(attribute="role", imbalance=0.5, min_images=1)
    with pytest.raises(UnknownName, match=r"rol.*\n.*nearest: role"):
        ClassesConfig(attribute="rol").training_table(table())
    with pytest.raises(ConfigError, match="one class, 'cook'"):
        config.training_table(table(roles=("cook",)))
    with pytest.raises(ConfigError, match=r"max_images=999.*allow 200"):
        dataclasses.replace(config, max_images=999).training_table(table())
    lacking = table()
    del lacking.attributes[4]["role"]
    with pytest.raises(SampleError, match="k4"):
        config.captioned(lacking)
    for change, fact in (
        ({"template": "a role"}, "template"), ({"imbalance": 0.0}, "imbalance"), ({"min_images": 0}, "min_images"),
        ({"imbalance": 1.0, "max_images": 5}, "max_images"), ({"imbalance": 1.0, "group_by": "scene"}, "group_by"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=fact):
            dataclasses.replace(config, **change)


def test_thirds_of_the_classes_by_rank():
    found = shots(dict(zip("abcdefg", (700, 600, 500, 400, 300, 200, 100), strict=True)))
    assert found == {"many": ["a", "b"], "medium": ["c", "d", "e"], "few": ["f", "g"]}
    assert shots({"b": 2, "a": 1}) == {"many": ["b"], "medium": [], "few": ["a"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_shards) -> DenoiserTraining:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("autoencoder")
    AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=5.0,
    ).save_pretrained(path)  # fmt: skip
    return DenoiserTraining(
        experiment="tiny",
        autoencoder=str(path),
        data=DataConfig(path=str(tiny_shards), batch_size=4),
        model=DenoiserShape(
            channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
            text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
        ),
        classes=ClassesConfig(attribute="colour", imbalance=0.5, min_images=2),
        trainer=TrainerConfig(accelerator="cpu", max_epochs=1, enable_progress_bar=False, log_every_steps=1),
        logger=LoggerConfig(kind="none"),
        warmup_steps=1,
    )  # fmt: skip


class Interrupt(lightning.Callback):
    """Stops the run after three steps, as a job's end would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            raise RuntimeError("stopped")


def fit(config, folder, *, callbacks=(), checkpoint=None):
    module, data = config.make()
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=folder, callbacks=callbacks)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, dict(trainer.callback_metrics)


@pytest.mark.parametrize("name", [None, *REGULARIZERS.names()])
def test_a_denoiser_is_trained_on_classes_with_each_term(config, name, tmp_path):
    term = None if name is None else RegularizerConfig(name=name)
    module, logged = fit(dataclasses.replace(config, regularizer=term), tmp_path)
    assert sum(module.facts["class_counts"].values()) < 16 and set(module.facts["shots"]) == {"many", "medium", "few"}
    extra = {None: 0, "coral": 0, "orientation_calibration": 0}.get(name, 1)
    assert module.facts["passes_per_sample"] == 1 + extra
    assert bool(torch.isfinite(logged["train/loss"])) and ("train/regularizer" in logged) == (name is not None)


def test_a_head_is_trained_with_the_denoiser_and_not_saved(config, tmp_path):
    trained = dataclasses.replace(config, regularizer=RegularizerConfig(name="coral", params={"width": 3}))
    start = trained.make()[0]
    module, _ = fit(trained, tmp_path)
    assert module.regularizer_head[2].weight.shape == (3, 16)
    assert not torch.equal(start.regularizer_head[2].weight, module.regularizer_head[2].weight)
    assert not module.unet.mid_block._forward_hooks
    module.save(tmp_path / "weights")
    assert "regularizer_head" not in str([path.name for path in (tmp_path / "weights").rglob("*")])
    assert len(UNet2DConditionModel.from_pretrained(tmp_path / "weights/unet").state_dict()) == len(
        module.unet.state_dict()
    )


def test_reserved_weights_are_saved_as_a_part_of_the_weights(config, tmp_path):
    trained = dataclasses.replace(config, regularizer=RegularizerConfig(name="capacity", params={"rank": 2}))
    module, _ = fit(trained, tmp_path)
    noised, text = torch.randn(2, 2, 8, 8), torch.randn(2, 16, 16)
    found = module.unet(noised, torch.tensor([1, 500]), text).sample
    module.save(tmp_path / "weights")
    saved = UNet2DConditionModel.from_pretrained(tmp_path / "weights/unet", torch_dtype=torch.float32)
    assert "original" not in str(list(saved.state_dict())) and "original" in str(list(module.unet.state_dict()))
    torch.testing.assert_close(saved(noised, torch.tensor([1, 500]), text).sample, found, atol=5e-3, rtol=5e-3)  # fp16
    with without(module.unet):
        general = module.unet(noised, torch.tensor([1, 500]), text).sample
    assert not torch.equal(general, found)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params"), [("coral", {"weight": 1.0}), ("capacity", {"weight": 1.0})])
def test_an_interrupted_run_with_a_term_equals_an_uninterrupted_one(config, tmp_path, name, params):
    config = dataclasses.replace(
        config,
        regularizer=RegularizerConfig(name=name, params=params),
        trainer=dataclasses.replace(config.trainer, max_epochs=3, checkpoint_every_steps=1),
    )
    whole, _ = fit(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(config, tmp_path / "cut", callbacks=[Interrupt()])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    resumed, _ = fit(config, tmp_path / "cut", checkpoint=last)
    assert resumed.global_step == whole.global_step > 3
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_a_term_changes_the_training_and_no_term_is_plain_training(config, tmp_path):
    def weights(regularizer):
        trained = dataclasses.replace(config, regularizer=regularizer)
        return fit(trained, tmp_path / str(regularizer))[0].unet.conv_out.weight

    plain = weights(None)
    assert not torch.equal(plain, weights(RegularizerConfig(name="cbdm", params={"tau": 1.0})))
    assert torch.equal(plain, weights(None))


def test_a_term_without_classes_is_refused(config):
    with pytest.raises(ConfigError, match=r"diffrop.*without classes"):
        dataclasses.replace(config, classes=None, regularizer=RegularizerConfig(name="diffrop"))


def test_a_term_on_a_class_of_one_image_is_refused_by_name(config):
    lowest = ClassesConfig(attribute="colour", imbalance=0.2, min_images=1)
    with pytest.raises(EmptyClass, match="colour.*1 image"):
        dataclasses.replace(config, classes=lowest, regularizer=RegularizerConfig(name="cbdm")).make()
