"""Which images' captions have which phrases, as a sparse table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.phrase_ranking import phrases_of
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

if TYPE_CHECKING:
    from scipy.sparse import csc_array

Ints = NDArray[np.int64]
FUNCTION_WORDS = frozenset("a an and as at by for from in into is it its of on or over the to under with".split())
"""English words that name nothing by themselves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionPhrases:
    """Phrases of captions and the images that have them."""

    phrases: tuple[str, ...]
    """The phrases; those of `of` in alphabetical order."""
    same: tuple[tuple[str, ...], ...]
    """Of each phrase, others that occur in the same images."""
    image: Ints
    """Image of each entry, ascending for each phrase."""
    starts: Ints
    """Position of the first entry of each phrase, and their number as the last, (phrases + 1,)."""
    n_images: int
    """Number of images, with those without a caption."""

    def images_with(self, phrase: int) -> Ints:
        """Return the images whose caption has the phrase of a number."""
        return self.image[self.starts[phrase] : self.starts[phrase + 1]]

    @property
    def n_with(self) -> Ints:
        """Number of images with each phrase, (phrases,)."""
        return np.diff(self.starts)

    def matrix(self) -> "csc_array":
        """Return 1 where an image has a phrase, (images, phrases)."""
        from scipy.sparse import csc_array  # heavy

        shape = (self.n_images, len(self.phrases))
        return csc_array((np.ones(len(self.image)), self.image, self.starts), shape=shape)

    @classmethod
    def of(
        cls,
        captions: Sequence[str],
        groups: Groups,
        *,
        max_words: int = 3,
        min_count: int = 10,
        min_groups: int = 5,
        max_phrases: int = 5000,
    ) -> "CaptionPhrases":
        """Collect the words and n-grams of captions.

        Of phrases that occur in the same images, the longest stays. Phrases of function words alone ("with the")
        are left out. No phrase may be left.

        Args:
            captions: caption of each image; an empty one has no phrase.
            groups: group of each image.
            max_words: largest number of words of an n-gram.
            min_count, min_groups: least number of images and of groups with a phrase, and without it.
            max_phrases: largest number of phrases; the most frequent ones stay.
        """
        if min(max_words, min_count, min_groups, max_phrases) < 1:
            raise ConfigError(
                f"max_words={max_words}, min_count={min_count}, min_groups={min_groups}, max_phrases={max_phrases}: "
                "each must be at least 1."
            )
        images: defaultdict[str, list[int]] = defaultdict(list)
        for i, caption in enumerate(captions):
            for phrase in phrases_of(caption, max_words):
                images[phrase].append(i)
        alike: defaultdict[bytes, list[str]] = defaultdict(list)
        size = np.bincount(groups.ids, minlength=groups.n)
        for phrase, rows in images.items():
            if not min_count <= len(rows) <= len(captions) - min_count or FUNCTION_WORDS.issuperset(phrase.split()):
                continue
            numbers, counts = np.unique(groups.ids[rows], return_counts=True)
            n_without = groups.n - int((counts == size[numbers]).sum())  # groups with an image without it
            if len(numbers) >= min_groups and n_without >= min_groups:
                alike[np.array(rows, dtype=np.int64).tobytes()].append(phrase)
        named = {max(names, key=lambda name: (len(name), name)): names for names in alike.values()}
        frequent = sorted(named, key=lambda name: (-len(images[name]), name))[:max_phrases]
        return cls._from(sorted(frequent), images, named, len(captions))

    @classmethod
    def find(cls, phrases: Sequence[str], captions: Sequence[str]) -> "CaptionPhrases":
        """Find given phrases, as `of` writes them, in other captions."""
        longest, images = (
            max((phrase.count(" ") + 1 for phrase in phrases), default=1),
            defaultdict[str, list[int]](list),
        )
        wanted = set(phrases)
        for i, caption in enumerate(captions):
            for phrase in wanted & phrases_of(caption, longest):
                images[phrase].append(i)
        return cls._from(list(phrases), images, {phrase: [phrase] for phrase in phrases}, len(captions))

    def extended(self, phrases: Sequence[str], captions: Sequence[str]) -> "CaptionPhrases":
        """Return these phrases, in their order, and after them others of the same captions."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in set(self.phrases)]
        if not new:
            return self
        found = self.find(new, captions)
        return CaptionPhrases(
            phrases=(*self.phrases, *found.phrases), same=(*self.same, *found.same), n_images=self.n_images,
            image=np.concatenate([self.image, found.image]),
            starts=np.concatenate([self.starts, found.starts[1:] + self.starts[-1]]),
        )  # fmt: skip

    @classmethod
    def _from(
        cls, phrases: list[str], images: defaultdict[str, list[int]], named: dict[str, list[str]], n_images: int
    ) -> "CaptionPhrases":
        counts = [len(images[phrase]) for phrase in phrases]
        entries = [i for phrase in phrases for i in images[phrase]]
        return cls(
            phrases=tuple(phrases),
            same=tuple(tuple(sorted(other for other in named[name] if other != name)) for name in phrases),
            image=np.array(entries, dtype=np.int64), starts=np.cumsum([0, *counts]).astype(np.int64),
            n_images=n_images,
        )  # fmt: skip
