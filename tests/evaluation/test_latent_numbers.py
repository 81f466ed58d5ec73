"""Numbers and names as columns and records of the explorer: planted factors are found, baselines are beside them."""

from dataclasses import replace

import numpy as np
import pytest

from diffprobe.analysis.latents.best_value import BestValueSettings
from diffprobe.analysis.latents.names import NameSettings
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.analysis.latents.sparse_codes import CodeCollector
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.latent_numbers import NumberSettings, SplitCodes, latent_names, latent_numbers
from tests.analysis.latents.planted_codes import (
    CLASSES,
    DARK,
    FISH,
    N_LATENTS,
    OWL,
    TONES,
    collected,
    dense_codes,
    update,
    world,
)

VALUES = {"class": CLASSES, "skin tone": TONES}
FEW = PermutationSettings(most=2000)
SETTINGS = NumberSettings(
    best_value=BestValueSettings(permutations=FEW), names=NameSettings(permutations=FEW), embedding_permutations=500
)


def split(seed, prefix, **more):
    found = world(seed, prefix=prefix, **more)
    return SplitCodes(
        codes=found.codes, targets={"class": found.label, "skin tone": found.tone}, groups=found.groups,
        captions=found.captions, embeddings=found.embeddings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    return split(0, "a"), split(1, "b")


def random_codes(of, seed):
    """Return the same images with codes that know nothing of them."""
    generator = np.random.default_rng(seed)
    n = of.codes.n_images
    dense = dense_codes(np.zeros(n), np.ones(n), generator, planted=False)
    return SplitCodes(
        codes=collected(dense, list(of.codes.keys)), targets=of.targets, groups=of.groups, embeddings=of.embeddings
    )


def columns_of(found):
    return {column.key: column for column in found.columns}


def test_planted_factors_are_found_in_the_columns(splits):
    decoder = np.random.default_rng(0).standard_normal((N_LATENTS, 6)).astype(np.float32)
    decoder[1] = decoder[0]
    baseline = (random_codes(splits[0], 3), random_codes(splits[1], 4))
    found = latent_numbers(
        *splits, VALUES, SETTINGS, decoder=decoder, encoder="planted vectors", baselines={"random": baseline}
    )
    columns = columns_of(found)
    assert set(columns) == {
        "auroc", "auroc_q", "precision", "purity", "purity_q", "entropy", "probe_bits", "probe_q", "absorption",
        "monosemanticity", "monosemanticity_q", "redundancy", "auroc_of_class", "q_of_class", "auroc_of_skin_tone",
        "q_of_skin_tone",
    }  # fmt: skip
    assert all(len(column.values) == N_LATENTS for column in found.columns)
    assert {found.best_values[i] for i in (DARK, OWL, FISH)} == {"skin tone=dark", "class=owl", "class=fish"}
    for key in ("auroc_q", "probe_q"):
        passed = {i for i, q in enumerate(columns[key].values) if q is not None and q <= 0.05}
        assert passed == {DARK, OWL, FISH}
    assert found.best_values[-1] == "" and columns["auroc"].values[-1] is None
    controls = dict(columns["auroc"].controls)
    assert (
        controls["chance"] == 0.5 and abs(controls["random (median)"] - 0.5) < 0.1 < columns["auroc"].values[OWL] - 0.5
    )
    assert dict(columns["monosemanticity"].controls)["random (median)"] < columns["monosemanticity"].values[OWL]
    assert "planted vectors" in columns["monosemanticity"].help
    assert columns["redundancy"].values[0] == pytest.approx(1)
    assert found.notes == () and found.smallest_p == pytest.approx(1 / 2001)


def test_best_target_takes_the_numbers_of_that_target(splits):
    both = columns_of(latent_numbers(*splits, VALUES, SETTINGS, encoder="x"))
    tone = [SplitCodes(codes=s.codes, targets={"skin tone": s.targets["skin tone"]}, groups=s.groups) for s in splits]
    alone = columns_of(latent_numbers(*tone, VALUES, SETTINGS))
    for key in ("auroc", "purity", "precision", "absorption"):
        assert both[key].values[DARK] == alone[key].values[DARK]
    assert both["auroc_of_skin_tone"].values == alone["auroc"].values
    assert not any(key.startswith("auroc_of") for key in alone)


def test_two_processes_give_the_numbers_and_names_of_one(splits):
    """The codes of both halves of each split, merged, in another order and with other batches."""
    merged = []
    for part in splits:
        dense = np.zeros((part.codes.n_images, N_LATENTS))
        dense[part.codes.row, part.codes.latent] = part.codes.value
        halves = [CodeCollector(N_LATENTS), CodeCollector(N_LATENTS)]
        for i, half in enumerate(halves):
            for rows in np.array_split(np.random.default_rng(i).permutation(np.arange(i, len(dense), 2)), 9):
                update(half, dense[rows], [part.codes.keys[row] for row in rows], k=N_LATENTS)
        halves[0].merge(halves[1])
        merged.append(replace(part, codes=halves[0].result()))
    one, two = (latent_numbers(*parts, VALUES, SETTINGS, encoder="x") for parts in (splits, merged))
    assert one.columns == two.columns and one.best_values == two.best_values
    assert latent_names(*splits, SETTINGS) == latent_names(*merged, SETTINGS)


def test_names_become_records(splits):
    names = latent_names(*splits, SETTINGS)
    assert [names[i][0].text for i in (DARK, OWL, FISH)] == ["dark tone", "owl", "fish"]
    assert all(names[i][0].shown for i in (DARK, OWL, FISH)) and names[-1] == []
    without = [SplitCodes(codes=s.codes, targets=s.targets, groups=s.groups) for s in splits]
    assert latent_names(*without, SETTINGS) == [[]] * N_LATENTS
    given = latent_names(*splits, SETTINGS, answers={1: "unicorn"})[1]
    assert [(name.text, name.shown, name.q) for name in given if name.text == "unicorn"] == [("unicorn", False, None)]


def test_a_target_that_cannot_be_measured_is_left_out_with_a_note(splits):
    changed = [
        SplitCodes(
            codes=s.codes, targets={"class": np.zeros_like(s.targets["class"]), "skin tone": s.targets["skin tone"]},
            groups=s.groups,
        )
        for s in splits
    ]  # fmt: skip
    found = latent_numbers(*changed, VALUES, SETTINGS)
    assert found.best_values[DARK] == "skin tone=dark"
    assert len(found.notes) == 1 and found.notes[0].startswith("Target 'class' is not measured: 1 values")
    none = [SplitCodes(codes=s.codes, targets={"class": s.targets["class"]}, groups=s.groups) for s in changed]
    nothing = latent_numbers(*none, VALUES, SETTINGS)
    assert nothing.columns == () and set(nothing.best_values) == {""} and len(nothing.notes) == 1


def test_bad_input_is_refused(splits):
    train, test = splits
    with pytest.raises(ConfigError, match="unnamed encoder"):
        latent_numbers(train, test, VALUES, SETTINGS)
    with pytest.raises(ConfigError, match="target 'class' has the value 3"):
        latent_numbers(train, test, {**VALUES, "class": CLASSES[:3]}, SETTINGS, encoder="x")
    other = SplitCodes(codes=test.codes, targets={"class": test.targets["class"]}, groups=test.groups)
    with pytest.raises(ConfigError, match="differ"):
        latent_numbers(train, other, VALUES, SETTINGS)
    with pytest.raises(ConfigError, match="'captions' has 1 entries for 240 images"):
        SplitCodes(codes=test.codes, targets={}, groups=test.groups, captions=["a"])
