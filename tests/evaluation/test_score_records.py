"""Accuracies, their spread and their controls, on planted errors."""

import dataclasses

import pytest
import torch
from torch import Tensor

from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.score_candidates import Question, questions
from diffprobe.evaluation.score_records import (
    FREQUENT,
    RANDOM_DENOISER,
    SHUFFLED,
    UNIFORM,
    chance,
    measures,
    score_records,
)
from diffprobe.evaluation.score_settings import CandidateRule
from tests.evaluation.score_world import encoded

WEIGHTS = torch.ones(4, dtype=torch.float64)


def asked(kind: str, n: int) -> Question:
    phrases = {"colour": "a {}"} if kind == "matched" else {}
    return questions(CandidateRule(kind=kind, n=n, phrases=phrases), encoded(), seed=0)[0]  # type: ignore[arg-type]


def planted(question: Question, gain: float, seed: int) -> Tensor:
    """Errors of noise, by `gain` smaller for the right candidate."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(*question.candidates.shape, 4, generator=generator, dtype=torch.float64)
    errors[torch.arange(len(errors)), question.right] -= gain
    return errors.masked_fill(~question.offered[..., None], torch.nan)


def records(question: Question, gains: list[float], *, prior: bool = False) -> dict[str, MetricRecord]:
    errors = [planted(question, gain, seed) for seed, gain in enumerate(gains)]
    blind = planted(question, 0.0, 99).mean(2).nan_to_num(torch.inf)
    found = score_records(
        question, errors, WEIGHTS, {RANDOM_DENOISER: blind}, encoded(), split="test", prior_correction=prior,
        detail={"timesteps": [1, 2, 3, 4]}, seed=0,
    )  # fmt: skip
    return {record.name: record for record in found}


def test_the_value_is_a_mean_over_sets_of_noise_beside_its_spread() -> None:
    record = records(asked("captions", 10), [5.0, 0.0])["caption_of_10_accuracy"]
    first, second = record.detail["by_noise_set"]
    assert first == 1 and second < 0.5 and record.value == pytest.approx((1 + second) / 2)
    assert record.spread == pytest.approx(abs(1 - second) / 2**0.5) and record.n_seeds == 2
    assert record.detail["passes_per_image"] == 40 and record.detail["timesteps"] == [1, 2, 3, 4]
    assert [point["passes"] for point in record.detail["curve"]] == [10, 20, 40]
    assert record.detail["curve"][-1]["accuracy"] == pytest.approx(record.value)


def test_controls_know_nothing_and_differences_are_paired() -> None:
    record = records(asked("captions", 10), [5.0, 5.0])["caption_of_10_accuracy"]
    assert record.value == 1 and record.controls["chance"] == 0.1
    assert record.controls[RANDOM_DENOISER] < 0.5 and record.controls[SHUFFLED] < 0.5
    assert record.detail["differences"]["chance"]["estimate"] == pytest.approx(0.9)


def test_recall_at_further_ranks_stands_beside_the_choice() -> None:
    question = dataclasses.replace(asked("captions", 10), further_ranks=(3,))
    found = records(question, [0.2, 0.2])
    assert list(found) == ["caption_of_10_accuracy", "caption_of_10_r3"]
    first, third = found.values()
    assert third.controls["chance"] == pytest.approx(0.3) and third.value > first.value
    scores = planted(question, 0.2, 0).mean(2)
    own = scores.gather(1, question.right[:, None])
    assert third.detail["by_noise_set"][0] == pytest.approx(float(((scores < own).sum(1) < 3).double().mean()))


def test_a_constant_answer_is_a_control_of_classes() -> None:
    rule = CandidateRule(kind="classes", attribute="colour", template="a {}")
    (question,) = questions(rule, encoded(), seed=0)
    rows = {name: getattr(question, name)[2:] for name in ("rows", "candidates", "right")}
    part = dataclasses.replace(question, **rows)
    (record,) = records(part, [5.0, 5.0]).values()
    assert record.controls[FREQUENT] == pytest.approx(5 / 18) and record.value == 1


def test_uniform_weights_are_a_control_over_the_same_sets_of_noise() -> None:
    """Only the first timestep knows the right candidate; a weight on it alone is compared with uniform weights."""
    question = asked("captions", 10)
    errors = [planted(question, 0.0, seed) for seed in (0, 1)]
    for part in errors:
        part[torch.arange(20), question.right, 0] -= 1.1
    weights = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    (record,) = score_records(
        question,
        errors,
        weights,
        {},
        encoded(),
        split="test",
        prior_correction=False,
        detail={},
        seed=0,
        unweighted=True,
    )
    by_hand = [(part.mean(2).argmin(1) == question.right).double().mean() for part in errors]
    assert (
        record.value == 1 and record.controls[UNIFORM] == pytest.approx(float(sum(by_hand)) / 2) and 0 < by_hand[0] < 1
    )
    assert record.detail["differences"][UNIFORM]["estimate"] == pytest.approx(1 - record.controls[UNIFORM])


def test_retrieval_is_recorded_both_ways() -> None:
    question = asked("retrieval", 20)
    found = records(question, [5.0, 5.0])
    assert set(found) == {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert all(record.value == 1 for record in found.values()) and found["image_to_text_r5"].controls["chance"] == 0.25
    nothing = records(question, [0.0, 0.0])
    assert all(record.value <= 2.5 * record.controls["chance"] for record in nothing.values())
    few = measures(asked("retrieval", 5), torch.rand(5, 5), torch.arange(5))
    assert set(few) == {"image_to_text_r1", "text_to_image_r1"}  # among five, rank 5 is always reached


def test_an_image_that_is_hard_to_denoise_is_found_all_the_same() -> None:
    question = asked("retrieval", 20)
    scores = planted(question, 2.0, 0).mean(2) + 100 * torch.arange(20)[:, None]
    assert measures(question, scores, question.right)["text_to_image_r1"].mean() == 1


def test_the_prior_correction_removes_what_a_caption_does_for_all_images() -> None:
    question = asked("retrieval", 20)
    errors = planted(question, 2.0, 0)
    errors[:, 3] -= 50
    given = {"split": "test", "detail": {}, "seed": 0}
    plain, fair = (
        score_records(question, [errors, errors], WEIGHTS, {}, encoded(), prior_correction=prior, **given)[0]
        for prior in (False, True)
    )
    assert plain.value == 0.05 and fair.value == 1 and fair.detail["curve"][-1]["accuracy"] == 1


def test_pairs_of_matched_captions_are_recorded_beside_the_choice() -> None:
    found = records(asked("matched", 4), [0.0, 0.0])
    assert set(found) == {"matched_caption_accuracy_colour", "matched_pair_accuracy_colour"}
    pair, choice = found["matched_pair_accuracy_colour"], found["matched_caption_accuracy_colour"]
    assert pair.controls["chance"] == 0.5 and choice.controls["chance"] == 0.25 and pair.value > choice.value
    assert records(asked("matched", 4), [5.0, 5.0])["matched_pair_accuracy_colour"].value == 1


def test_ties_are_wrong_for_every_metric() -> None:
    for question in (asked("captions", 5), asked("retrieval", 6), asked("matched", 4)):
        equal = torch.zeros(question.candidates.shape).masked_fill(~question.offered, torch.inf)
        for name, values in measures(question, equal, question.right).items():
            assert values.sum() == 0 and (chance(question, name) > 0).all()


def sets() -> Question:
    return questions(CandidateRule(kind="sets", attribute="shape"), encoded(), seed=0)[0]


def test_sets_are_judged_both_ways_by_hand() -> None:
    question = sets()
    scores = torch.rand(*question.candidates.shape, generator=torch.Generator().manual_seed(0))
    scores[torch.arange(20), question.right] -= 0.4
    scores += 10 * torch.arange(20)[:, None]  # images differ in how hard they are to denoise
    found = measures(question, scores, question.right)
    text, image = [], []
    for row, name in enumerate(question.sets):
        own = int(question.right[row])
        text.append(all(scores[row, own] < scores[row, place] for place in range(1, 5) if place != own))
        others = [other for other, its in enumerate(question.sets) if its == name and other != row]
        gains = {other: float(scores[other, own] - scores[other, 0]) for other in [row, *others]}
        image.append(all(gains[row] < gains[other] for other in others))
    assert found["set_image_to_text_r1"].bool().tolist() == text and 0 < sum(text) < 20
    assert found["set_text_to_image_r1"].bool().tolist() == image and 0 < sum(image) < 20
    of_sets = {name: [row for row in range(20) if question.sets[row] == name] for name in question.sets}
    for metric, right in {
        "text": text,
        "image": image,
        "group": [a and b for a, b in zip(text, image, strict=True)],
    }.items():
        expected = [float(all(right[row] for row in of_sets[name])) for name in question.sets]
        assert found[f"set_{metric}_score"].tolist() == expected


def test_random_errors_of_sets_reach_their_chance() -> None:
    question = sets()
    sums: dict[str, float] = {}
    for seed in range(300):
        scores = torch.rand(*question.candidates.shape, generator=torch.Generator().manual_seed(seed))
        for name, values in measures(question, scores, question.right).items():
            sums[name] = sums.get(name, 0.0) + float(values.mean()) / 300
    for name, value in sums.items():
        # from text to image the same reference stands in all comparisons of an image, so chance is approximate there
        assert value == pytest.approx(float(chance(question, name).mean()), abs=0.02)
    assert float(chance(question, "set_text_score")[0]) == 4.0**-4


def test_own_images_are_compared_with_real_ones_in_pairs() -> None:
    question = asked("captions", 10)
    errors = [planted(question, gain, seed) for seed, gain in enumerate([0.0, 0.0])]
    found = score_records(
        question, errors, WEIGHTS, {}, encoded(), split="test", prior_correction=False, detail={}, seed=0,
        generated=planted(question, 5.0, 3), passes_of_generation=7,
    )  # fmt: skip
    real, own = found
    assert own.name == "generated_caption_of_10_accuracy" and own.value == 1
    assert own.controls["real_images"] == real.detail["by_noise_set"][0] < 0.5
    assert own.detail["differences"]["real_images"]["low"] > 0 and own.detail["passes_per_image"] == 47
