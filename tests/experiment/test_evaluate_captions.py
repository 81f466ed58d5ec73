"""What is planted in errors and latents is found; what only looks like it is not."""

import pytest
import torch
from rich.progress import Progress

from diffprobe.analysis.caption_choice import Screening
from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.core.errors import EmptyClass
from diffprobe.experiment.evaluate_captions import Encoded, caption_choice, other_rows, regressions, text_use
from diffprobe.training.images import ImageTable

WORDS = ["red", "green", "blue", "round", "flat", "thin", "wide", "old", "new", "far"]


class Planted:
    """A model that denoises better by as much as a text's number is near the latent's, at early timesteps only."""

    n_timesteps = 1000

    def __call__(self, latents, keys, text, timesteps):
        far = (latents.flatten(1)[:, None] - text[:, :, 0]).square().mean(-1)
        early = torch.tensor([float(t < 500) for t in timesteps])
        return 1 + far[..., None] * early

    def encode_pooled(self, captions):
        return vectors(captions)


def vectors(captions) -> torch.Tensor:
    return torch.tensor([[float(word in caption.split(" ")) for word in WORDS] for caption in captions])


def planted(n: int, seed: int) -> Encoded:
    """Samples of three words each; the latent has one channel a word."""
    generator = torch.Generator().manual_seed(seed)
    captions = [" ".join(WORDS[i] for i in torch.randperm(10, generator=generator)[:3].tolist()) for _ in range(n)]
    table = ImageTable(
        images=torch.zeros(n, 3, 1, 1, dtype=torch.uint8),
        keys=[f"{seed}-{i}" for i in range(n)],
        captions=[(caption, "another caption") for caption in captions],
        attributes=[{}] * n,
    )
    return Encoded(table, vectors(captions).reshape(n, 10, 1, 1), [" ".join(sorted(c.split(" "))) for c in captions])


def test_the_text_helps_where_it_was_planted():
    encoded = planted(60, 0)
    with Progress(disable=True) as progress:
        records = text_use(
            Planted(), encoded, vectors(encoded.captions)[:, None], "test", seed=0, progress=progress
        )  # fmt: skip
    assert [record.name for record in records[:-1]] == [f"denoising_error_t{t}" for t in range(50, 1000, 100)]
    for record in records[:5]:
        assert record.value == 1 and record.nulls["shuffled_captions"] > 1 and record.detail["gain_standard_error"] > 0
    for record in records[5:-1]:
        assert record.value == record.nulls["shuffled_captions"] == 1
    assert records[-1].name == "tenths_where_text_helps" and records[-1].value == 5


def chosen(encoded: Encoded, text: torch.Tensor, expectations, screening=None):
    with Progress(disable=True) as progress:
        return caption_choice(
            Planted(), encoded, text[:, None], "test", n=10, timesteps=[100, 300, 700], screening=screening,
            expectations=expectations, seed=0, progress=progress,
        )  # fmt: skip


def test_the_choice_stands_beside_chance_and_the_regressions():
    train, test = planted(300, 1), planted(80, 2)
    fitted = regressions(Planted(), train, RegressionRule(images=250), seed=0)
    record = chosen(test, vectors(test.captions), fitted)
    assert record.name == "caption_of_10_accuracy" and record.value == 1 and record.n == 80
    assert record.nulls["chance"] == 0.1 and record.detail["timesteps"] == [100, 300, 700]
    assert record.nulls["regression_on_words"] > 0.9 and record.nulls["regression_on_text_encoder"] > 0.9
    mixed = Encoded(train.table, train.latents[torch.randperm(300)], train.groups)  # captions of other images
    nulls = chosen(
        test, vectors(test.captions), regressions(Planted(), mixed, RegressionRule(images=250), seed=0)
    ).nulls
    assert nulls["regression_on_words"] < 0.35 and nulls["regression_on_text_encoder"] < 0.35


def test_a_model_that_knows_nothing_chooses_by_chance_and_the_regressions_do_not_change():
    train, test = planted(200, 1), planted(200, 2)
    fitted = regressions(Planted(), train, RegressionRule(images=200), seed=0)
    blind = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    known, unknown = chosen(test, vectors(test.captions), fitted), chosen(test, blind, fitted)
    low, high = unknown.detail["interval"]
    assert low <= unknown.value <= high and unknown.value < 0.3 and known.nulls == unknown.nulls


def test_a_screening_is_recorded_with_what_it_alone_would_say():
    test = planted(40, 3)
    late = Screening(timesteps=(700,), kept=3)  # where the planted model knows nothing, so all is a tie
    record = chosen(test, vectors(test.captions), {}, late)
    assert record.detail["screening"] == {"timesteps": [700], "kept": 3, "accuracy": 0.0} and record.value == 0
    early = chosen(test, vectors(test.captions), {}, Screening(timesteps=(100,), kept=3))
    assert early.detail["screening"]["accuracy"] == early.value == 1


def test_a_regression_on_some_images_is_a_seeded_choice():
    train, test = planted(200, 1), planted(20, 2)

    def expected(seed: int, images: int) -> torch.Tensor:
        return regressions(Planted(), train, RegressionRule(images=images), seed=seed)["regression_on_words"](
            test.captions
        )

    assert torch.equal(expected(0, 100), expected(0, 100)) and not torch.equal(expected(0, 100), expected(1, 100))
    torch.testing.assert_close(expected(0, 200), expected(1, 9999))  # all of them, whatever the seed


def test_wrong_captions_are_a_seeded_shuffle_over_groups():
    groups = [f"g{i // 5}" for i in range(40)]
    rows = other_rows(groups, 0)
    assert sorted(rows.tolist()) == list(range(40))  # every caption is wrong once
    assert all(groups[row] != groups[place] for place, row in enumerate(rows.tolist()))
    assert torch.equal(rows, other_rows(groups, 0)) and not torch.equal(rows, other_rows(groups, 1))
    assert all(other_rows(["a", "b"] * 3, seed)[::2].tolist() != [0, 2, 4] for seed in range(5))  # half is possible
    with pytest.raises(EmptyClass, match="more than half of 5 samples are of the group 'a'"):
        other_rows(["a", "a", "a", "b", "c"], 0)
