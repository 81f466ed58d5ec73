"""The pages of the explorer: of latents, from sums and top images; of images, from a pass that holds one batch."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from diffprobe.core.errors import DiffprobeError, SampleError
from diffprobe.evaluation.explore_codes import ImageCodes
from diffprobe.evaluation.explore_columns import Similar
from diffprobe.evaluation.explore_pass import PassResult, maps_of
from diffprobe.evaluation.latent_codes import CLASS
from diffprobe.evaluation.page_features import PageFeatures
from diffprobe.evaluation.probe_runs import reason
from diffprobe.features.fetch_images import fetch_images
from diffprobe.report.explorer.records import (
    ActiveLatent,
    Bar,
    Bars,
    CurvePoint,
    ImagePage,
    LatentPage,
    Name,
    TopImage,
)
from diffprobe.shards.annotation import Caps
from diffprobe.shards.decode import decode_image
from diffprobe.shards.reader import RawSample


def latent_pages(
    found: PassResult, similar: Similar, names: Mapping[int, Sequence[Name]], *, n_bars: int
) -> Iterator[LatentPage]:
    """Yield the page of each latent, in order.

    Args:
        found: sums and top images.
        similar: nearest latents, and the matched ones of other seeds.
        names: names of latents, of those that have candidates.
        n_bars: most values of a label that are listed.
    """
    for latent in range(found.sums.n_latents):
        histogram, end = found.sums.histograms.of(latent)
        yield LatentPage(
            latent=latent,
            names=tuple(names.get(latent, ())),
            top=tuple(
                TopImage(image=one.image, activation=one.activation, map=one.map) for one in found.top[latent]
            ),
            histogram=histogram,
            histogram_end=end,
            groups=tuple(_bars(found, name, latent, n_bars) for name in found.labels),
            curve=_curve(found, latent),
            neighbours=similar.neighbours(latent),
            recurrence=similar.recurrence(latent),
        )  # fmt: skip


def _bars(found: PassResult, name: str, latent: int, n_bars: int) -> Bars:
    """Return the values of a label, by the share of their images on which the latent is active, then by strength."""
    sums = found.sums.by_label[name]
    n_images, n_active = sums.n_images, sums.n_active[latent]
    mean = sums.total[latent] / np.maximum(n_images, 1)
    share = n_active / np.maximum(n_images, 1)
    order = [value for value in np.lexsort((-mean, -share)).tolist() if n_images[value]][:n_bars]
    bars = [
        Bar(
            value=found.labels[name][value], n_images=int(n_images[value]), n_active=int(n_active[value]),
            mean_activation=float(mean[value]),
        )
        for value in order
    ]  # fmt: skip
    return Bars(group=name, bars=bars)


def _curve(found: PassResult, latent: int) -> list[CurvePoint]:
    sums = found.sums
    points = zip(sums.timesteps, sums.n_rows, sums.row_active[latent], sums.row_total[latent], strict=True)
    return [
        CurvePoint(
            timestep=timestep, frequency=float(active / max(n, 1)), mean_activation=float(total / max(active, 1))
        )
        for timestep, n, active, total in points
    ]  # fmt: skip


def image_pages(
    found: PassResult, stream: Iterable[ImageCodes], thumbnails: "Thumbnails", *, n_latents: int
) -> Iterator[ImagePage]:
    """Yield the page of each image, in order, holding one batch.

    Args:
        found: sums of all latents, whose largest activations scale the maps.
        stream: the codes of all images.
        thumbnails: the pictures.
        n_latents: most latents that a page lists.
    """
    for codes in stream:
        labels = {name: codes.labels(name).tolist() for name in found.labels}
        captions = codes.captions
        shards = codes.table.shards[codes.chosen.start : codes.chosen.stop]
        values, indices = codes.code.values.cpu().numpy(), codes.code.indices.cpu().numpy()
        for i, key in enumerate(codes.keys):
            active = np.flatnonzero(values[i] > 0)
            active = active[np.lexsort((indices[i, active], -values[i, active]))][:n_latents]
            latents = indices[i, active].tolist()
            maps = maps_of(codes, i, latents, found.sums.maximum)
            named = {name: found.labels[name][value[i]] for name, value in labels.items() if value[i] >= 0}
            yield ImagePage(
                key=key,
                caption=captions[i],
                label=named.pop(CLASS, ""),
                attributes=tuple(named.items()),
                latents=tuple(
                    ActiveLatent(latent=latent, activation=float(values[i, place]), map=shown)
                    for latent, place, shown in zip(latents, active.tolist(), maps, strict=True)
                ),
                thumbnail=thumbnails.load(key, shards[i] if shards else ""),
            )


class Thumbnails:
    """Small pictures of the images of a split, read from its shards in order, one at a time.

    Args:
        features: the features, with the shards that hold the images.
        shards: names of the shards of the split.
        side: largest side in pixels.
        caps: largest parts of a sample that are read.
    """

    def __init__(self, features: PageFeatures, shards: Iterable[str], side: int, caps: Caps | None = None) -> None:
        self._images, self._side, self._caps = features.images, side, caps
        self._shard = ""
        self._raws: Iterator[RawSample] = iter(())
        self.missing = features.missing
        """Reason that pictures are missing; empty if they are at hand."""
        if self._images is not None:
            try:
                for shard in shards:
                    self._images[0].check(shard)
            except (DiffprobeError, OSError, KeyError) as error:
                self._images = None
                self.missing = f"{error!s}." if isinstance(error, KeyError) else reason(error)

    def load(self, key: str, shard: str) -> bytes | None:
        """Return the picture of an image as PNG; None if pictures are missing or this image cannot be decoded."""
        if self._images is None:
            return None
        try:
            return self._encode(self._next(key, shard))
        except SampleError:
            return None

    def _next(self, key: str, shard: str) -> Image.Image:
        """Return an image, reading on in its shard; one that comes in another order is looked up by itself."""
        assert self._images is not None
        shard_set, fields = self._images
        names = shard_set.fields_for(fields)
        if shard != self._shard:
            self._shard, self._raws = shard, shard_set.read(shard, caps=self._caps)
        for raw in self._raws:
            if raw.key == key:
                return decode_image(raw, names, caps=self._caps)
        self._shard = ""
        return fetch_images(shard_set, [key], shards={key: shard}, fields=fields, caps=self._caps)[key]

    def _encode(self, image: Image.Image) -> bytes:
        image.thumbnail((self._side, self._side))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
