"""Paired differences of planted prompt latents: h = context + value * direction + seed + noise."""

import numpy as np
import pytest

from diffprobe.analysis.certification.direction import cosine
from diffprobe.analysis.prompt_directions import crossed_halves, halves_cosine, held_out_pairs, pair_prompts
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, UnknownName

CONTEXTS, SEEDS, D = 12, 4, 40
ENDS = {"target": "texture", "positive": "striped", "negative": "plain", "context": "context"}


def planted(generator, *, strength=1.0, seed_noise=2.0):
    """Return latents (prompts, seeds, d), texts, attributes and the unit direction."""
    direction = generator.standard_normal(D)
    direction /= np.linalg.norm(direction)
    contexts = 5 * generator.standard_normal((CONTEXTS, 1, D))
    seeds = seed_noise * generator.standard_normal((1, SEEDS, D))
    rows, texts, attributes = [], [], {"texture": [], "context": []}
    for number in range(CONTEXTS):
        for value, sign in (("striped", 1), ("plain", -1)):
            noise = 0.1 * generator.standard_normal((SEEDS, D))
            rows.append(contexts[number] + seeds[0] + sign * strength / 2 * direction + noise)
            texts.append(f"a {number}, {value} clothes")
            attributes["texture"].append(value)
            attributes["context"].append(f"c{number}")
    return np.stack(rows).astype(np.float32), texts, attributes, direction


def without(attributes, row, name):
    changed = {key: list(values) for key, values in attributes.items()}
    changed[name][row] = None
    return changed


def test_the_paired_difference_recovers_the_planted_direction():
    latents, texts, attributes, direction = planted(np.random.default_rng(0))
    pairs = pair_prompts(texts, attributes, **ENDS)
    changes = pairs.differences(latents)
    assert changes.shape == (CONTEXTS, SEEDS, D) and changes.dtype == np.float64
    mean = changes.mean((0, 1))
    assert cosine(mean, direction) > 0.99 and np.linalg.norm(mean) == pytest.approx(1.0, abs=0.05)
    assert halves_cosine(changes.mean(1), n_halves=50, level=0.95, seed=0).mean > 0.95
    assert halves_cosine(changes.mean(0), n_halves=50, level=0.95, seed=0).mean > 0.95
    by_end = latents.reshape(CONTEXTS, 2, SEEDS, D).astype(np.float64)
    assert pairs.midpoint(latents) == pytest.approx(by_end.mean((0, 1, 2)))


def test_neither_the_order_of_prompts_nor_of_seeds_matters():
    generator = np.random.default_rng(1)
    latents, texts, attributes, _ = planted(generator)
    expected = pair_prompts(texts, attributes, **ENDS).differences(latents)
    order = generator.permutation(len(texts))
    moved = pair_prompts(
        [texts[i] for i in order], {name: [values[i] for i in order] for name, values in attributes.items()}, **ENDS
    ).differences(latents[order])
    assert np.array_equal(moved, expected)
    shuffled = pair_prompts(texts, attributes, **ENDS).differences(latents[:, ::-1])
    assert np.array_equal(shuffled[:, ::-1], expected)


def test_wrong_contexts_or_values_break_what_pairing_gives():
    """Contexts that do not match leave the mean as it is, but no longer cancel; swapped values break the mean, too."""
    generator = np.random.default_rng(2)
    latents, texts, attributes, direction = planted(generator)
    pairs = pair_prompts(texts, attributes, **ENDS)
    right = pairs.differences(latents)
    wrong = latents[list(pairs.positive)] - latents[list(np.roll(pairs.negative, 1))].astype(np.float64)
    assert wrong.mean((0, 1)) == pytest.approx(right.mean((0, 1)), abs=1e-5)
    halves = [halves_cosine(one.mean(1), n_halves=50, level=0.95, seed=0).mean for one in (right, wrong)]
    assert halves[0] > 0.95 and halves[1] < 0.3
    values = list(attributes["texture"])
    for context in range(0, CONTEXTS, 2):
        values[2 * context], values[2 * context + 1] = values[2 * context + 1], values[2 * context]
    swapped = pair_prompts(texts, {**attributes, "texture": values}, **ENDS).differences(latents)
    assert abs(cosine(swapped.mean((0, 1)), direction)) < 0.6 < cosine(right.mean((0, 1)), direction)


def test_other_values_are_left_out_and_counted():
    latents, texts, attributes, _ = planted(np.random.default_rng(3))
    more = {"texture": [*attributes["texture"], "dotted", None], "context": [*attributes["context"], "c0", None]}
    pairs = pair_prompts([*texts, "a dotted one", "nothing"], more, **ENDS)
    assert pairs.n_left_out == 2 and len(pairs.contexts) == CONTEXTS
    found = pairs.differences(np.concatenate([latents, latents[:2]]))
    assert np.array_equal(found, pair_prompts(texts, attributes, **ENDS).differences(latents))


def test_wrong_prompts_are_refused_by_name():
    _, texts, attributes, _ = planted(np.random.default_rng(4))
    for changed, error, fact in (
        ({"target": "textur"}, UnknownName, "texture"),
        ({"positive": "stripd"}, UnknownName, "striped"),
        ({"context": "contxt"}, UnknownName, "context"),
        ({"negative": "striped"}, ConfigError, "striped"),
        ({"context": "texture"}, ConfigError, "texture"),
    ):
        with pytest.raises(error, match=fact):
            pair_prompts(texts, attributes, **{**ENDS, **changed})
    with pytest.raises(ConfigError, match="1 prompts .*context(.|\n)*a 1, plain"):
        pair_prompts(texts, without(attributes, 3, "context"), **ENDS)
    with pytest.raises(ConfigError, match="partner(.|\n)*a 1, striped"):
        pair_prompts(texts, without(attributes, 3, "texture"), **ENDS)
    twice = {**attributes, "context": ["c0", "c0", "c0", *attributes["context"][3:]]}
    with pytest.raises(ConfigError, match="two prompts(.|\n)*a 0, striped(.|\n)*a 1, striped"):
        pair_prompts(texts, twice, **ENDS)
    with pytest.raises(ConfigError, match="1 context "):
        pair_prompts(texts[:2], {name: values[:2] for name, values in attributes.items()}, **ENDS)


def test_latents_without_a_direction_are_refused():
    latents, texts, attributes, _ = planted(np.random.default_rng(5))
    pairs = pair_prompts(texts, attributes, **ENDS)
    with pytest.raises(EmptyClass, match="12 pairs are equal"):
        pairs.differences(np.ones_like(latents))
    latents[3, 1, 2] = np.nan
    with pytest.raises(NonFinite):
        pairs.differences(latents)
    with pytest.raises(EmptyClass, match="1 change"):
        halves_cosine(np.ones((1, 3)), n_halves=5, level=0.95, seed=0)


def test_held_out_pairs_are_those_of_plain_loops():
    generator = np.random.default_rng(8)
    changes = 0.3 * np.eye(D)[0] + generator.standard_normal((CONTEXTS, SEEDS, D))
    right = []
    for context in range(CONTEXTS):
        direction = np.delete(changes, context, axis=0).mean((0, 1))
        right += [float(change @ direction > 0) for change in changes[context]]
    assert held_out_pairs(changes) == pytest.approx(np.mean(right)) and 0.5 < np.mean(right) < 1
    turned = np.linalg.qr(generator.standard_normal((D, D)))[0]
    order = generator.permutation(CONTEXTS)
    assert held_out_pairs(5 * changes[order] @ turned) == pytest.approx(held_out_pairs(changes))
    assert held_out_pairs(np.zeros((3, 2, 4))) == 0.5
    with pytest.raises(EmptyClass, match="1 context"):
        held_out_pairs(changes[:1])


def test_held_out_pairs_of_noise_are_at_chance():
    generator = np.random.default_rng(9)
    found = [held_out_pairs(generator.standard_normal((8, 2, D))) for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_what_one_seed_adds_to_all_differences_lowers_crossed_halves_alone():
    """A seed whose noise answers to the value is in both halves of the contexts, but not in both of the seeds."""
    generator = np.random.default_rng(6)
    noise, direction = generator.standard_normal((1, SEEDS, D)), np.eye(D)[0]
    settings = {"n_halves": 30, "level": 0.95, "seed": 0}
    changes = direction + np.broadcast_to(noise, (CONTEXTS, SEEDS, D))
    assert halves_cosine(changes.mean(1), **settings).mean == pytest.approx(1)
    assert crossed_halves(changes, **settings).mean < 0.5
    clean = crossed_halves(direction + 0.01 * generator.standard_normal((CONTEXTS, SEEDS, D)), **settings)
    assert clean.mean > 0.95 and clean.low <= clean.mean <= clean.high and clean.n == CONTEXTS * SEEDS
    with pytest.raises(EmptyClass, match="1 seeds"):
        crossed_halves(changes[:, :1], **settings)
