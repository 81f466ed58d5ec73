"""Held-out numbers and names of planted latents: found where they are, and nothing where the labels say nothing."""

import dataclasses
import tracemalloc

import pytest
import torch

from diffprobe.analysis.latents.best_value import BestValueSettings
from diffprobe.analysis.latents.names import NameSettings
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.evaluation.explore_numbers import held_out_numbers
from diffprobe.evaluation.latent_numbers import NumberSettings
from diffprobe.features.batch import concatenate
from tests.evaluation.planted_run import STYLES, planted_run, planted_tables

SETTINGS = NumberSettings(
    best_value=BestValueSettings(permutations=PermutationSettings(most=200)), names=NameSettings(rate=0.05)
)


def two_splits(split="test"):
    """A planted run with other images in train and test."""
    tables = {"train": concatenate(planted_tables(90, seed=1)), "test": concatenate(planted_tables(90, seed=2))}
    run = planted_run([tables["test"]])
    features = dataclasses.replace(run.features, iter_tables=lambda name: iter([tables[name]]))
    return dataclasses.replace(run, features=features, split=split), tables


def test_planted_latents_have_their_number_and_their_name():
    run, _ = two_splits()
    found = held_out_numbers(run, SETTINGS)
    columns = {column.key: column for column in found.columns}
    for latent, style in enumerate(STYLES):
        assert columns["auroc"].values[latent] > 0.99 and columns["auroc_q"].values[latent] < 0.05
        assert found.texts[0].values[latent] == f"style = {style}"
        shown = [name.text.split() for name in found.names[latent] if name.shown]
        assert shown and all(style in words for words in shown)
    assert columns["auroc"].values[5] is None and found.texts[0].values[5] == ""  # never active
    assert {name.partition(" (")[0] for name, _ in columns["auroc"].controls} == {
        "chance", "raw neurons", "PCA components", "random dictionary",
    }  # fmt: skip
    assert "chosen on 'train' and measured on 'test', with single images as groups" in found.notes[0]


def test_a_latent_that_never_fires_on_held_out_images_shows_no_value():
    run, tables = two_splits()
    (features,) = tables["test"].features.values()
    features[:, 2] = -100.0  # the latent of the third style, chosen on train as before
    found = held_out_numbers(run, SETTINGS)
    auroc = next(column.values for column in found.columns if column.key == "auroc")
    assert auroc[2] is None and found.texts[0].values[:3] == [f"style = {STYLES[0]}", f"style = {STYLES[1]}", ""]
    assert "active on none of the held-out images" in found.texts[0].help


def test_shuffled_labels_and_captions_find_nothing():
    run, tables = two_splits()
    for number, table in enumerate(tables.values()):
        order = torch.randperm(len(table.keys), generator=torch.Generator().manual_seed(number))
        table.attributes["style"] = table.attributes["style"][order]
        table.captions[:] = [table.captions[i] for i in order.tolist()]
    found = held_out_numbers(run, SETTINGS)
    columns = {column.key: column for column in found.columns}
    assert all(q is None or q > 0.05 for q in columns["auroc_q"].values)
    assert not any(name.shown for names in found.names.values() for name in names)


@pytest.mark.parametrize("split", ["train"])
def test_the_training_split_itself_is_not_measured(split):
    run, _ = two_splits(split)
    found = held_out_numbers(run, SETTINGS)
    assert not found.columns and not found.names and "'train' is the split" in found.notes[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_images():
    """The same images again and again under other keys: a sample of 64 is measured."""
    run, tables = two_splits()

    def peak(n):
        def parts(split):
            for i in range(n):
                part = tables[split].select(torch.arange(90))
                part.keys = [f"{i:06d}-{j:02d}" for j in range(90)]
                yield part

        features = dataclasses.replace(run.features, iter_tables=parts)
        tracemalloc.start()
        found = held_out_numbers(dataclasses.replace(run, features=features), SETTINGS, max_images=64)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.columns
        return used

    peak(1)  # imports and caches
    growth = (peak(24) - peak(6)) / (18 * 90)
    assert growth < 16  # bytes per image; its key alone has more than 50


def test_parts_of_a_split_give_the_numbers_of_the_whole():
    run, tables = two_splits()
    rows = torch.arange(90)
    halves = dataclasses.replace(
        run.features, iter_tables=lambda name: iter([tables[name].select(rows[:40]), tables[name].select(rows[40:])])
    )
    whole, parts = (held_out_numbers(one, SETTINGS) for one in (run, dataclasses.replace(run, features=halves)))
    assert (whole.texts, whole.names, whole.notes) == (parts.texts, parts.names, parts.notes)
    for one, other in zip(whole.columns, parts.columns, strict=True):  # controls have sums in another order
        assert (one.key, one.values) == (other.key, other.values)
