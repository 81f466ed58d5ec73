"""Is a latent active where a part of the image is? Mask IoU and pointing game on held-out images.

Mask IoU (Bau et al. 2017, 1704.05796, Network dissection): the places at which a latent exceeds a threshold, against
the places that a part covers, as intersection over union of all images together. Pointing game (Zhang et al. 2016,
1608.00507): how often the latent's largest activation in an image is on the part, over the images in which it exceeds
the threshold.

Part and threshold are chosen on the training split: those whose IoU exceeds most the IoU that the same activations have
with the masks of other images, in expectation. A part that covers most of the image has a large IoU by chance, so the
largest one says nothing. The test takes the masks of other groups of images: a latent that prefers a place, such as the
middle of the image, passes as little as one that is active everywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.permutation_tests import Moments, PermutationSettings, adjusted
from diffprobe.analysis.latents.place_codes import PlaceCodes
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Shares of a latent's active training places above the thresholds that are compared."""
MIN_IMAGES = 5
"""Least number of training images on which a latent is active, and that have a part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PartScores:
    """The best part of each latent and how well it is covered, on held-out images; NaN where it cannot be measured."""

    part: Ints
    """Number of the part, -1 for none, (latents,)."""
    threshold: Floats
    """Activation from which a place counts as active, (latents,)."""
    iou: Floats
    """Intersection over union, (latents,)."""
    chance_iou: Floats
    """The same with the masks of other images, in expectation, (latents,)."""
    iou_p: Floats
    """One-sided p against the masks of other groups, (latents,)."""
    pointing: Floats
    """Share of the images with a place above the threshold where the largest activation is on the part, (latents,)."""
    chance_pointing: Floats
    """The same with the masks of other images, in expectation, (latents,)."""
    pointing_p: Floats
    """One-sided p against the masks of other groups, (latents,)."""

    @property
    def iou_q(self) -> Floats:
        """p of the IoU adjusted for the number of latents (Benjamini-Hochberg)."""
        return adjusted(self.iou_p)

    @property
    def pointing_q(self) -> Floats:
        """p of the pointing game adjusted for the number of latents (Benjamini-Hochberg)."""
        return adjusted(self.pointing_p)


def part_scores(
    train: PlaceCodes, train_masks: Bools, test: PlaceCodes, test_masks: Bools, groups: Groups,
    settings: PermutationSettings | None = None,
) -> PartScores:  # fmt: skip
    """Measure all latents.

    Args:
        train, test: activations at the places of two splits.
        train_masks, test_masks: whether each part covers each place, (parts, images, places).
        groups: group of each test image; their masks are exchanged group by group.
        settings: permutations; None for 200 with a fitted tail.

    Raises: ConfigError for masks of other images or places.
    """
    settings = PermutationSettings(most=200) if settings is None else settings
    for name, codes, masks in (("train", train, train_masks), ("test", test, test_masks)):
        if masks.ndim != 3 or masks.shape[1:] != (len(codes.keys), codes.n_places):
            raise ConfigError(
                f"masks of shape {masks.shape} for {len(codes.keys)} images of '{name}' with {codes.n_places} places.",
                "needed: (parts, images, places)",
            )
    if len(train_masks) != len(test_masks) or len(groups.ids) != len(test.keys):
        raise ConfigError(
            f"{len(train_masks)} parts in train and {len(test_masks)} in test; {len(groups.ids)} groups for "
            f"{len(test.keys)} test images."
        )
    part, threshold = _choose(train, train_masks)
    fires = np.bincount(test.latent, minlength=test.n_latents) > 0
    if not len(test_masks):
        fires = np.zeros_like(fires)
    part = np.where(fires, part, -1)
    found = {name: np.full(test.n_latents, np.nan) for name in ("iou", "pointing")}
    chance, p = ({name: column.copy() for name, column in found.items()} for _ in range(2))
    measures = _measures(test, test_masks, part, threshold) if (part >= 0).any() else {}
    for name, measure in measures.items():
        found[name][measure.latents] = measure.of(np.arange(len(test.keys)))
        chance[name][measure.latents] = measure.expected()
        p[name][measure.latents] = _p(measure, groups, settings)
    below = (part >= 0) & np.isnan(found["iou"])  # active, but never above its threshold
    found["iou"][below], chance["iou"][below], p["iou"][below] = 0.0, 0.0, 1.0  # and it points at nothing
    return PartScores(
        part=part, threshold=np.where(part >= 0, threshold, np.nan), iou=found["iou"], chance_iou=chance["iou"],
        iou_p=p["iou"], pointing=found["pointing"], chance_pointing=chance["pointing"], pointing_p=p["pointing"],
    )  # fmt: skip


def _choose(codes: PlaceCodes, masks: Bools) -> tuple[Ints, Floats]:
    """Return part and threshold of each latent; -1 where it is active on too few images."""
    n = codes.n_latents
    n_active = np.bincount(codes.latent, minlength=n)
    rank = np.arange(len(codes.latent)) - codes.starts[codes.latent]
    pairs = np.unique(codes.latent * max(len(codes.keys), 1) + codes.row)
    n_images = np.bincount(pairs // max(len(codes.keys), 1), minlength=n)
    best, part, threshold = np.full(n, -np.inf), np.full(n, -1, dtype=np.int64), np.full(n, np.nan)
    usable = np.flatnonzero(masks.any(2).sum(1) >= MIN_IMAGES)
    for share in SHARES:
        n_kept = np.ceil(share * n_active).astype(np.int64)
        kept = rank < n_kept[codes.latent]
        latent, row, place = codes.latent[kept], codes.row[kept], codes.place[kept]
        last = np.full(n, np.nan)
        last[n_active > 0] = codes.value[(codes.starts[:-1] + n_kept - 1)[n_active > 0]]
        for number in usable.tolist():
            of_part = masks[number]
            area = float(of_part.sum())
            shared = np.bincount(latent, weights=of_part[row, place], minlength=n).astype(np.float64)
            expected = np.bincount(latent, weights=of_part.mean(0)[place], minlength=n).astype(np.float64)
            excess = _iou(shared, n_kept, area) - _iou(expected, n_kept, area)
            better = (excess > best) & (n_images >= MIN_IMAGES)
            best[better], part[better], threshold[better] = excess[better], number, last[better]
    return part, threshold


def _iou(shared: Floats, n_active: Ints, area: float) -> Floats:
    return shared / np.maximum(n_active + area - shared, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measure:
    """A sum over activations of whether the latent's part covers the place; with masks of any order of the images."""

    latents: Ints
    """The latents, (measured,)."""
    part: Ints
    """Part of each of them."""
    starts: Ints
    """Position of the first activation of each of them."""
    row: Ints
    base: Ints
    """Position of the activation's place in the flat masks of the first image."""
    masks: Bools
    is_iou: bool

    def take(self, kept: Bools) -> "_Measure":
        """Return that of some of the latents."""
        counts = np.diff(np.append(self.starts, len(self.row)))
        stays = np.repeat(kept, counts)
        return _Measure(
            latents=self.latents[kept], part=self.part[kept], starts=np.cumsum(np.append(0, counts[kept]))[:-1],
            row=self.row[stays], base=self.base[stays], masks=self.masks, is_iou=self.is_iou,
        )  # fmt: skip

    def of(self, order: Ints) -> Floats:
        """Return the measure where image i has the masks of image order[i], (measured,)."""
        hits = self.masks.reshape(-1)[self.base + order[self.row] * self.masks.shape[2]]
        return self._score(np.add.reduceat(hits, self.starts, dtype=np.float64), self.masks.sum(2)[:, order].sum(1))

    def expected(self) -> Floats:
        """Return the measure of expected sums, where each image has the masks of any one, (measured,)."""
        n_parts, n_images, n_places = self.masks.shape
        part, place = self.base // (n_images * n_places), self.base % n_places
        sums = np.add.reduceat(self.masks.mean(1)[part, place], self.starts)
        return self._score(sums, self.masks.reshape(n_parts, -1).sum(1))

    def _score(self, shared: Floats, areas: Ints) -> Floats:
        counts = np.diff(np.append(self.starts, len(self.row)))
        if not self.is_iou:
            return shared / counts
        return shared / np.maximum(counts + areas[self.part] - shared, 1.0)


def _measures(codes: PlaceCodes, masks: Bools, part: Ints, threshold: Floats) -> dict[str, _Measure]:
    known = part[codes.latent] >= 0
    above = known & (codes.value >= np.where(part >= 0, threshold, np.inf)[codes.latent])
    pair = codes.latent * len(codes.keys) + codes.row
    largest = np.zeros(len(pair), dtype=bool)
    largest[np.unique(pair, return_index=True)[1]] = True  # the first of a pair is its largest
    return {
        name: _measure(codes, masks, part, chosen, is_iou=name == "iou")
        for name, chosen in (("iou", above), ("pointing", above & largest))
        if chosen.any()
    }


def _measure(codes: PlaceCodes, masks: Bools, part: Ints, chosen: Bools, *, is_iou: bool) -> _Measure:
    latent, row, place = codes.latent[chosen], codes.row[chosen], codes.place[chosen]
    latents, starts = np.unique(latent, return_index=True)
    base = part[latent] * (masks.shape[1] * masks.shape[2]) + place
    return _Measure(
        latents=latents, part=part[latents], starts=starts, row=row, base=base, masks=masks, is_iou=is_iou
    )  # fmt: skip


def _p(measure: _Measure, groups: Groups, settings: PermutationSettings) -> Floats:
    """Return the p of each latent against masks of other groups; permutations end early as in `permuted_p`."""
    generator = np.random.default_rng(settings.seed)
    members = groups.members()
    order = np.concatenate(members)
    sizes = np.array([len(one) for one in members])
    starts = np.cumsum(np.append(0, sizes))[:-1]
    within = np.empty(len(order), dtype=np.int64)
    within[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    p, tests = np.full(len(measure.latents), np.nan), np.arange(len(measure.latents))
    if groups.n < 2:
        return p
    observed = measure.of(np.arange(len(order)))
    reached, drawn, moments = np.zeros(len(tests), dtype=np.int64), 0, Moments.none(len(tests))
    while drawn < settings.most and len(tests):
        other = generator.permutation(groups.n)[groups.ids]
        values = measure.of(order[starts[other] + within % sizes[other]])
        drawn += 1
        reached += values >= observed - 1e-12
        moments.add((values - observed)[:, None])
        done = reached >= settings.enough
        if done.any():
            p[tests[done]] = settings.enough / drawn
            tests, observed, reached = tests[~done], observed[~done], reached[~done]
            moments, measure = moments.take(~done), measure.take(~done)
    p[tests] = (1 + reached) / (1 + drawn)
    rare = reached == 0
    if settings.tail and rare.any():
        p[tests[rare]] = np.minimum(p[tests[rare]], moments.take(rare).tail(np.zeros(int(rare.sum())), drawn))
    return p
