"""A model that was planted with one attribute chooses by that attribute alone."""

import itertools
import logging

import pytest
import torch

from diffprobe.core.progress import ProgressDisplay
from diffprobe.evaluation.captions import Encoded
from diffprobe.evaluation.matched_captions import matched_choice, written_choice
from diffprobe.generative.image_table import ImageTable

STYLES, COLOURS, THINGS = ["thick", "thin"], ["red", "green", "blue"], [f"thing{i}" for i in range(20)]
WORDS = [*STYLES, *COLOURS, *THINGS]


def vectors(captions) -> torch.Tensor:
    return torch.tensor([[float(word in caption.split(" ")) for word in WORDS] for caption in captions])


class Knows:
    """A model that denoises better by as much as a text agrees with a latent in some words; it counts its passes."""

    def __init__(self, words) -> None:
        self.known = torch.tensor([float(word in words) for word in WORDS])
        self.passes = 0

    def __call__(self, latents, keys, conditions, timesteps):
        far = (latents.flatten(1)[:, None] - conditions["text"][:, :, 0]).square() @ self.known
        self.passes += far.numel() * len(timesteps)
        noise = torch.rand(far.shape, generator=torch.Generator().manual_seed(len(keys)))
        return (1 + far + 0.01 * noise)[..., None].expand(-1, -1, len(timesteps))


def drawings() -> Encoded:
    """Each thing in both styles and all colours; half of the things have no colour."""
    samples = []
    for number, (thing, style) in enumerate(itertools.product(THINGS, STYLES)):
        if number % 4 < 2:
            for colour in COLOURS:
                samples.append((f"{style} {colour} {thing}", {"style": style, "colour": colour, "thing": thing}))
        else:
            samples.append((f"{style} {thing}", {"style": style, "thing": thing}))
    captions = [caption for caption, _ in samples]
    table = ImageTable(
        images=torch.zeros(len(samples), 3, 1, 1, dtype=torch.uint8),
        keys=[f"key {i}" for i in range(len(samples))],
        captions=[(caption,) for caption in captions],
        attributes=[values for _, values in samples],
    )
    things = [values["thing"] for _, values in samples]
    return Encoded(table, vectors(captions)[..., None, None], things, things)


def measured(score, encoded, expected=None, attributes=("style", "colour")):
    with ProgressDisplay(shown=False) as progress:
        records = matched_choice(
            score, encoded, {"text": vectors(encoded.captions)[:, None]}, "test", attributes=attributes,
            timesteps=[100, 300, 500], expected=expected or {}, seed=0, progress=progress,
        )  # fmt: skip
    return {record.name.removeprefix("matched_caption_accuracy_"): record for record in records}


def test_what_a_model_knows_is_found_and_what_it_does_not_know_is_not():
    encoded = drawings()
    found = measured(Knows(STYLES), encoded)
    assert found["style"].value == 1 and found["colour"].value < 0.6
    assert (
        found["style"].detail["differences"]["chance"]["low"]
        > 0
        >= found["colour"].detail["differences"]["chance"]["low"]
    )
    found = measured(Knows([*COLOURS, *THINGS]), encoded)
    assert found["colour"].value == 1 and found["style"].value < 0.7
    found = measured(Knows(THINGS), encoded)  # random distractors would be told apart by the thing
    assert found["colour"].value < 0.6 and found["style"].value < 0.7


def test_chance_and_the_samples_without_a_choice():
    encoded, score = drawings(), Knows(WORDS)
    found = measured(score, encoded)
    assert len(encoded.table) == 80 and found["style"].n == 80 and found["colour"].n == 60
    assert found["style"].detail["left_out"] == 0 and found["colour"].detail["left_out"] == 20
    assert found["style"].controls == {"chance": 1 / 2} and found["colour"].controls == {"chance": pytest.approx(1 / 3)}
    assert score.passes == 3 * (80 * 2 + 60 * 3)  # nothing is padded
    assert set(found["colour"].detail["by"]["colour"]) == set(COLOURS)
    assert found["colour"].detail["differences"]["chance"]["n_groups"] == 10


def test_chance_is_averaged_over_ragged_numbers_of_candidates():
    encoded = drawings()
    kept = [row for row, key in enumerate(encoded.table.attributes) if key.get("colour") != "blue" or row < 40]
    table = ImageTable(
        encoded.table.images[kept], [encoded.table.keys[row] for row in kept],
        [encoded.table.captions[row] for row in kept], [encoded.table.attributes[row] for row in kept],
    )  # fmt: skip
    families = [encoded.families[row] for row in kept]
    part = Encoded(table, encoded.latents[kept], families, families)
    record = measured(Knows(WORDS), part)["colour"]
    of_two = sum(row >= 40 for row in kept if "colour" in encoded.table.attributes[row])
    assert 0 < of_two < record.n and record.value == 1
    assert record.controls["chance"] == pytest.approx((of_two / 2 + (record.n - of_two) / 3) / record.n)


def test_a_regression_that_knows_as_much_is_not_exceeded():
    encoded = drawings()
    knows, ignores = vectors(encoded.captions), vectors(encoded.captions)
    ignores[:, : len(STYLES)] = 0.5
    found = measured(Knows(WORDS), encoded, {"knows": knows, "ignores": ignores})["style"]
    assert found.controls["knows"] == 1 and found.controls["ignores"] == 0  # a tie is wrong
    assert found.detail["differences"]["knows"]["low"] == 0 < found.detail["differences"]["ignores"]["low"]


def test_an_attribute_that_no_caption_states_is_named_and_not_measured(caplog):
    with caplog.at_level(logging.WARNING):
        assert set(measured(Knows(WORDS), drawings(), attributes=("style", "size"))) == {"style"}
    assert "'size'" in caplog.text and "'test'" in caplog.text


def measured_written(score, encoded, phrases, expectations=None, most=10):
    with ProgressDisplay(shown=False) as progress:
        records = written_choice(
            score, encoded, lambda captions: {"text": vectors(captions)[:, None]}, "test", phrases=phrases, most=most,
            timesteps=[100, 300], expectations=expectations or {}, seed=0, progress=progress,
        )  # fmt: skip
    return {record.name.removeprefix("matched_caption_accuracy_"): record for record in records}


def test_written_captions_need_no_other_sample():
    encoded = drawings()
    kept = [row for row, sample in enumerate(encoded.table.attributes) if sample.get("colour") != "blue" or row == 2]
    table = ImageTable(
        encoded.table.images[kept], [encoded.table.keys[row] for row in kept],
        [encoded.table.captions[row] for row in kept], [encoded.table.attributes[row] for row in kept],
    )  # fmt: skip
    families = [encoded.families[row] for row in kept]
    part = Encoded(table, encoded.latents[kept], families, families)
    assert not measured_written(Knows(WORDS), part, {"colour": "a {} thing"})
    found = measured_written(Knows(WORDS), part, {"style": "{}", "colour": "{}"})
    assert found["colour"].value == 1 and found["colour"].controls["chance"] == pytest.approx(1 / 3)
    assert found["colour"].n == sum("colour" in sample for sample in table.attributes)
    assert found["style"].value == 1 and found["style"].controls["chance"] == 1 / 2
    blind = measured_written(Knows(THINGS), part, {"style": "{}"}, {"knows": vectors})["style"]
    assert blind.value < 0.7 and blind.controls["knows"] == 1


def test_of_many_values_each_sample_has_its_own_draw():
    encoded, score = drawings(), Knows(WORDS)
    record = measured_written(score, encoded, {"thing": "{}"}, most=5)["thing"]
    assert record.value == 1 and record.controls["chance"] == pytest.approx(1 / 5)
    assert score.passes == 2 * len(encoded.table) * 5
