"""What is planted in errors and latents is found; what only looks like it is not."""

import dataclasses

import pytest
import torch

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.core.errors import EmptyClass
from diffprobe.core.progress import ProgressDisplay
from diffprobe.evaluation.captions import Encoded, caption_choice, other_rows, regressions, text_use
from diffprobe.generative.image_table import ImageTable
from diffprobe.probes.score.staged_errors import Stage

WORDS = ["red", "green", "blue", "round", "flat", "thin", "wide", "old", "new", "far"]


class Planted:
    """A model that denoises better by as much as a text's number is near the latent's, at early timesteps only."""

    def __call__(self, latents, keys, conditions, timesteps):
        text = conditions["text"]
        far = (latents.flatten(1)[:, None] - text[:, :, 0]).square().mean(-1)
        early = torch.tensor([float(t < 500) for t in timesteps])
        return 1 + far[..., None] * early


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
    groups = [" ".join(sorted(c.split(" "))) for c in captions]
    return Encoded(table, vectors(captions).reshape(n, 10, 1, 1), groups, groups)


def test_the_text_helps_where_it_was_planted():
    encoded = planted(60, 0)
    with ProgressDisplay(shown=False) as progress:
        text = {"text": vectors(encoded.captions)[:, None]}
        records = text_use(Planted(), encoded, text, "test", n_timesteps=1000, seed=0, progress=progress)
    assert [record.name for record in records[:-1]] == [f"denoising_error_t{t}" for t in range(50, 1000, 100)]
    for record in records[:5]:
        assert record.value == 1 and record.controls["shuffled_captions"] > 1
        low, high = record.detail["gain_interval"]
        assert 0 < low < record.detail["gain"] < high
    for record in records[5:-1]:
        assert record.value == record.controls["shuffled_captions"] == 1
    assert records[-1].name == "tenths_where_text_helps" and records[-1].value == 5


def test_the_interval_of_a_gain_knows_that_variants_of_a_drawing_are_alike():
    test = planted(40, 0)
    rows = torch.arange(40).repeat_interleave(5)  # five copies of each

    def width(encoded: Encoded) -> float:
        with ProgressDisplay(shown=False) as progress:
            text = {"text": encoded.latents.flatten(1)[:, None]}
            first = text_use(Planted(), encoded, text, "test", n_timesteps=1000, seed=0, progress=progress)[0]
        low, high = first.detail["gain_interval"]
        return high - low

    table = dataclasses.replace(
        test.table, images=test.table.images[rows], keys=[f"{row}-{i}" for i, row in enumerate(rows.tolist())],
        captions=[test.table.captions[row] for row in rows], attributes=[{}] * 200,
    )  # fmt: skip
    loud = torch.where(torch.arange(40) % 2 == 0, 1.0, 6.0)  # captions do more for some drawings than for others
    latents = test.latents * loud[:, None, None, None]
    of_drawings = [str(row) for row in rows.tolist()]
    copies = Encoded(table, latents[rows], of_drawings, of_drawings)
    alone = dataclasses.replace(copies, families=[str(i) for i in range(200)])
    assert width(alone) < 0.75 * width(copies)


def chosen(encoded: Encoded, text: torch.Tensor, expectations, screening=None, by=(), timesteps=(100, 300, 700)):
    with ProgressDisplay(shown=False) as progress:
        return caption_choice(
            Planted(), encoded, {"text": text[:, None]}, "test", n=10, timesteps=timesteps, screening=screening,
            expected={name: of(encoded.captions) for name, of in expectations.items()}, by=by, seed=0,
            progress=progress,
        )  # fmt: skip


def test_the_choice_has_chance_and_the_regressions_as_controls():
    train, test = planted(300, 1), planted(80, 2)
    fitted = regressions(train, RegressionRule(images=250), vectors, seed=0)
    record = chosen(test, vectors(test.captions), fitted)
    assert record.name == "caption_of_10_accuracy" and record.value == 1 and record.n == 80
    assert record.controls["chance"] == 0.1 and record.detail["timesteps"] == [100, 300, 700]
    assert record.controls["regression_on_words"] > 0.9 and record.controls["regression_on_text_encoder"] > 0.9
    mixed = dataclasses.replace(train, latents=train.latents[torch.randperm(300)])  # captions of other images
    fitted = regressions(mixed, RegressionRule(images=250), vectors, seed=0)
    controls = chosen(test, vectors(test.captions), fitted).controls
    assert controls["regression_on_words"] < 0.35 and controls["regression_on_text_encoder"] < 0.35


def test_a_model_that_knows_nothing_chooses_by_chance_and_the_regressions_do_not_change():
    train, test = planted(200, 1), planted(200, 2)
    fitted = regressions(train, RegressionRule(images=200), vectors, seed=0)
    blind = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    known, unknown = chosen(test, vectors(test.captions), fitted), chosen(test, blind, fitted)
    low, high = unknown.detail["interval"]
    assert low <= unknown.value <= high and unknown.value < 0.3 and known.controls == unknown.controls


def test_a_paired_difference_tells_a_model_that_knows_more_from_one_that_knows_as_much():
    train, test = planted(200, 1), planted(120, 2)
    half = dataclasses.replace(train, latents=torch.cat([train.latents[:, :5], torch.zeros(200, 5, 1, 1)], 1))
    fitted = regressions(half, RegressionRule(images=200), vectors, seed=0)  # knows five of ten words
    text = vectors(test.captions)
    more = chosen(test, text, fitted).detail["differences"]
    as_much = chosen(test, torch.cat([text[:, :5], torch.zeros(120, 5)], 1), fitted)
    assert set(more) == {"chance", "regression_on_words", "regression_on_text_encoder"}
    assert all(found["low"] > 0 for found in more.values())
    found = as_much.detail["differences"]["regression_on_words"]
    assert found["low"] <= 0.05 and found["estimate"] < more["regression_on_words"]["low"]
    assert as_much.detail["differences"]["chance"]["low"] > 0
    whole = as_much.value - as_much.controls["regression_on_words"]
    assert found["estimate"] == pytest.approx(whole) and found["n_groups"] == len(set(test.families))


def test_the_accuracy_is_also_that_of_the_values_of_attributes():
    test = planted(60, 2)
    text = vectors(test.captions)
    text[:30] = torch.rand(30, 10, generator=torch.Generator().manual_seed(0))  # nothing is known of these
    attributes = [{"half": "lost"}] * 30 + [{"half": "found"}] * 20 + [{}] * 10
    test = dataclasses.replace(test, table=dataclasses.replace(test.table, attributes=attributes))
    record = chosen(test, text, {}, by=["half"])
    found = record.detail["by"]["half"]
    assert {value: of_value["n"] for value, of_value in found.items()} == {"lost": 30, "found": 20, "(none)": 10}
    assert found["lost"]["accuracy"] < 0.4 and found["found"]["accuracy"] == found["(none)"]["accuracy"] == 1
    assert record.value == pytest.approx((30 * found["lost"]["accuracy"] + 30) / 60)
    assert found["lost"]["controls"] == {"chance": pytest.approx(0.1)}


def test_a_screening_is_recorded_with_what_it_alone_would_say():
    test = planted(40, 3)
    first, text = Stage(n_timesteps=1, kept=3), vectors(test.captions)
    late = chosen(test, text, {}, first, timesteps=(700, 100, 300))  # where the planted model knows nothing: all tie
    assert late.detail["screening"] == {"timesteps": [700], "kept": 3, "accuracy": 0.0}
    assert late.value == 1 and late.detail["timesteps"] == [100, 300, 700]  # candidates that tie are all kept
    early = chosen(test, text, {}, first)
    assert early.detail["screening"]["accuracy"] == early.value == 1


def test_a_regression_on_some_images_is_a_seeded_choice():
    train, test = planted(200, 1), planted(20, 2)

    def expected(seed: int, images: int) -> torch.Tensor:
        return regressions(train, RegressionRule(images=images), vectors, seed=seed)["regression_on_words"](
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
    with pytest.raises(EmptyClass, match="5 samples .* 'a'"):
        other_rows(["a", "a", "a", "b", "c"], 0)
