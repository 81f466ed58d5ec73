"""Each image is offered its own candidate at any position; candidates no model could tell apart are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.families import describe, kandinsky
from diffprobe.backbones.locate import locate
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.evaluation.score_candidates import Question, questions, require_condition, require_distinct
from diffprobe.evaluation.score_settings import CandidateRule
from diffprobe.scoring.denoising_error import DenoisingError
from tests.evaluation.score_world import COLOURS, encoded


def right_values(question: Question) -> list[object]:
    own = question.candidates.gather(1, question.right[:, None]).flatten()
    return [question.values[place] for place in own.tolist()]


@pytest.mark.parametrize("kind", ["captions", "retrieval"])
def test_the_own_caption_is_right_wherever_it_stands(kind: str) -> None:
    world = encoded()
    (question,) = questions(CandidateRule(kind=kind, n=6), world, seed=0)  # type: ignore[arg-type]
    assert right_values(question) == [world.captions[row] for row in question.rows.tolist()]
    assert len(set(question.right.tolist())) > 3 and question.offered.all() and question.candidates.shape[1] == 6
    assert all(len(set(row)) == 6 for row in question.candidates.tolist())
    assert question.is_square == (kind == "retrieval")


def test_classes_are_the_values_of_an_attribute() -> None:
    world = encoded()
    (question,) = questions(CandidateRule(kind="classes", attribute="colour", template="a {} thing"), world, seed=0)
    assert question.values == [f"a {colour} thing" for colour in sorted(COLOURS)]
    assert right_values(question) == [f"a {sample['colour']} thing" for sample in world.table.attributes]
    (numbers,) = questions(CandidateRule(kind="classes", attribute="number"), world, seed=0)
    assert numbers.values == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="'blue' of 'colour'"):
        questions(CandidateRule(kind="classes", attribute="colour"), world, seed=0)


def test_classes_may_be_those_of_the_data_set() -> None:
    world = encoded()
    names = [sample["shape"] for sample in world.table.attributes]
    table = dataclasses.replace(world.table, class_names=[*names[:-1], ""], captions=[()] * 20)
    rule = CandidateRule(kind="classes", attribute="class_name", template="a photo of a {}")
    (question,) = questions(rule, dataclasses.replace(world, table=table), seed=0)
    assert question.name == "class_accuracy_class_name" and len(question.rows) == 19
    assert right_values(question) == [f"a photo of a {name}" for name in names[:-1]]


def test_classes_may_be_those_with_the_most_groups() -> None:
    """A class with many images of one group does not count more than its groups."""
    world = encoded()
    samples = zip(world.table.attributes, world.groups, strict=True)
    groups = [group if sample["colour"] == "red" else "one" for sample, group in samples]
    groups[COLOURS.index("blue") * 5] = "two"
    rule = CandidateRule(kind="classes", attribute="colour", template="a {}", most_values=2)
    (question,) = questions(rule, dataclasses.replace(world, groups=groups), seed=0)
    assert question.values == ["a blue", "a red"] and len(question.rows) == 10
    assert right_values(question) == [f"a {world.table.attributes[row]['colour']}" for row in question.rows.tolist()]


def test_a_pool_gives_wrong_captions_of_other_groups() -> None:
    world = encoded()
    pool = [(group, caption) for group, caption in zip(world.groups, world.captions, strict=True)]
    pool += [("red cat", "a scarlet cat"), *((f"more {i // 2}", f"text {i}") for i in range(30))]
    rule = CandidateRule(kind="captions", n=40, pool=("val",), ranks=(5,))
    (question,) = questions(rule, world, seed=0, pool=pool)
    assert right_values(question) == world.captions and question.further_ranks == (5,)
    assert question.candidates.shape == (20, 40) and all(len(set(row)) == 40 for row in question.candidates.tolist())
    offered = [{question.values[place] for place in row} for row in question.candidates.tolist()]
    assert "a scarlet cat" not in offered[0] and sum("a scarlet cat" in texts for texts in offered) > 10
    alone = dataclasses.replace(
        world, table=world.table.take(torch.tensor([7])), latents=world.latents[[7]], groups=world.groups[7:8],
        families=world.families[7:8],
    )  # fmt: skip
    (one,) = questions(rule, alone, seed=0, pool=pool)
    assert {one.values[place] for place in one.candidates[0].tolist()} == offered[7]  # no matter who else is asked
    with pytest.raises(EmptyClass, match="60 candidates need 59"):
        questions(dataclasses.replace(rule, n=60), world, seed=0, pool=pool)


def test_matched_captions_differ_in_one_attribute() -> None:
    world = encoded()
    rule = CandidateRule(kind="matched", n=3, phrases={"colour": "a {}", "shape": "{}"})
    colour, shape = questions(rule, world, seed=0)
    assert (colour.name, shape.name) == ("matched_caption_accuracy_colour", "matched_caption_accuracy_shape")
    for row, own in zip(colour.candidates.tolist(), right_values(colour), strict=True):
        assert {str(colour.values[place]).split()[2] for place in row} == {str(own).split()[2]}


def test_sets_are_the_images_that_share_a_value() -> None:
    world = encoded()
    (question,) = questions(CandidateRule(kind="sets", attribute="shape"), world, seed=0)
    assert question.sets == tuple(sample["shape"] for sample in world.table.attributes) and question.values[0] == ""
    assert right_values(question) == world.captions
    for row, name in zip(question.candidates.tolist(), question.sets, strict=True):
        assert row[0] == 0 and {str(question.values[place]).split()[-1] for place in row[1:]} == {name}
    assert not question.eligible[:, 0].any() and question.eligible[:, 1:].all() and question.offered.all()


def test_sets_with_a_caption_twice_or_one_image_are_left_out() -> None:
    world = encoded()
    captions = [("the same",) if "cat" in caption else (caption,) for caption in world.captions]
    attributes = [{**sample, "shape": "alone"} if row == 1 else sample
                  for row, sample in enumerate(world.table.attributes)]  # fmt: skip
    table = dataclasses.replace(world.table, captions=captions, attributes=attributes)
    (question,) = questions(
        CandidateRule(kind="sets", attribute="shape"), dataclasses.replace(world, table=table), seed=0
    )
    assert set(question.sets) == {"dog", "cow", "hen", "owl"} and len(question.rows) == 4 * 4 - 1
    assert int(question.eligible.sum(1).min()) == 3  # of one dog there is no other image
    with pytest.raises(EmptyClass, match="'tone'"):
        questions(CandidateRule(kind="sets", attribute="tone"), world, seed=0)


def test_too_few_candidates_are_refused() -> None:
    world = encoded()
    with pytest.raises(EmptyClass, match="21"):
        questions(CandidateRule(kind="retrieval", n=21), world, seed=0)
    with pytest.raises(EmptyClass, match="21"):
        questions(CandidateRule(n=21), world, seed=0)
    with pytest.raises(EmptyClass, match="'tone' has 0 values"):
        questions(CandidateRule(kind="classes", attribute="tone", template="{}"), world, seed=0)
    with pytest.raises(EmptyClass, match="with {} fur"):
        questions(CandidateRule(kind="matched", phrases={"colour": "with {} fur"}), world, seed=0)


def asked(*texts: str) -> Question:
    places = torch.arange(len(texts))[None]
    return Question("q", torch.tensor([0]), list(texts), places, torch.tensor([0]))


@pytest.fixture(scope="module")
def texts(tiny_sd: Path) -> dict[str, TextEncoder]:
    return DenoisingError.from_pretrained(str(tiny_sd), device="cpu").backbone.texts  # type: ignore[attr-defined]


def test_candidates_that_tokenise_alike_or_are_too_long_are_named(texts: dict[str, TextEncoder]) -> None:
    require_distinct(asked("red cat", "blue cat"), texts)
    with pytest.raises(ConfigError, match="'red cat' and 'Red  cat' tokenise alike"):
        require_distinct(asked("red cat", "Red  cat"), texts)
    with pytest.raises(ConfigError, match="'red red .* tokens"):
        require_distinct(asked("red " * 100, "blue"), texts)


def test_candidates_of_different_images_may_be_alike(texts: dict[str, TextEncoder]) -> None:
    apart = torch.tensor([[0, 2], [1, 2]])
    require_distinct(Question("q", torch.arange(2), ["red", "Red", "blue"], apart, torch.zeros(2).long()), texts)


def test_an_unconditional_model_is_refused(tmp_path: Path, tiny_sd: Path) -> None:
    _, spec = describe(locate(str(kandinsky.tiny(tmp_path / "k"))), None)
    with pytest.raises(ConfigError, match="unconditional"):
        require_condition(spec, ["a cat"])
    _, spec = describe(locate(str(tiny_sd)), None)
    require_condition(spec, ["a cat"])
    with pytest.raises(ConfigError, match="needed: label"):
        require_condition(spec, [1])
