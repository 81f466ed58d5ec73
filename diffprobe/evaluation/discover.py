"""`diffprobe discover`: takes latents of a store apart without labels, and writes a result, a CSV file and a page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffprobe.analysis.discovery.search import Discovery, discover_attributes
from diffprobe.config.parse import record_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import INPUT, RESULT_FILE, SHARDS, STORE, StartTime, make_result, write_result
from diffprobe.evaluation.discover_inputs import DiscoverySamples, Pixels, read_samples
from diffprobe.evaluation.discover_records import HIGH, LOW, examples_of, records_of
from diffprobe.evaluation.discover_settings import DiscoverConfig
from diffprobe.features.reader import FeatureStore
from diffprobe.report.data_uri import data_uri
from diffprobe.report.discovery_table import render_csv
from diffprobe.report.pages.discovery import Example, render_discovery

KIND = "discovery"
"""Kind of the results."""
CSV_FILE, PAGE_FILE = "discovery.csv", "discovery.html"
"""Files beside the result: a row per component, and the page."""
_RULES = 1
"""Raised when a measure changes, so that discoveries of both versions have different folders."""
_SIDE = 96
"""Largest side of an example, pixels; smaller images keep their size."""

Examples = Mapping[int, tuple[Sequence[int], Sequence[int]]]
"""Number of a component -> numbers of samples at its positive and at its negative end."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished discovery and its files."""

    found: Discovery
    """What was found."""
    result: Path
    """`result.json`."""

    @property
    def csv(self) -> Path:
        """The table."""
        return self.result.with_name(CSV_FILE)

    @property
    def page(self) -> Path:
        """The page."""
        return self.result.with_name(PAGE_FILE)


def discover(store: FeatureStore | Path | str, config: DiscoverConfig, *, output: Path | str = "runs") -> Written:
    """Discover the attributes that vary in the samples of a store, and write the files.

    The folder is <output>/discover/<first 12 digits of a digest>.

    Args:
        store: a complete feature store, of prompts or of images, or its folder.
        config: cell, subjects and thresholds.
        output: folder of runs.

    Raises: the errors of `read_samples` and `discover_attributes`; ConfigError for a reader without images.
    """
    started_at = StartTime.now()
    store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    samples = read_samples(store, config)
    if config.reader is not None and samples.images is None:
        raise ConfigError(
            f"reader={config.reader} reads images, and they are not at hand.",
            fix="images=SHARDS for a store of images; features.keep=[images] in the extraction of prompts",
        )
    inputs = {STORE: store.manifest.digest}
    if samples.image_digest is not None:
        inputs[SHARDS] = samples.image_digest
    found = discover_attributes(samples.features, samples.design, samples.keys, samples.captions, config.search)
    factors = None
    if config.reader is not None:
        from diffprobe.evaluation.discover_reader import likest_factors
        from diffprobe.generative.scene_reader import WEIGHTS_FILE, find_reader

        inputs[f"{INPUT}reader"] = digest_file(find_reader(config.reader) / WEIGHTS_FILE)
        factors = likest_factors(found.components.scores, _all_images(samples), config.reader)
    chosen: Examples = {
        one.component: examples_of(
            found.components.scores[:, one.component], samples.design.subjects, config.n_examples
        )
        for one in found.structured
    }
    tree = {**record_tree(config), "cell": samples.cell}
    name = digest_json({**tree, "inputs": inputs, "rules": _RULES})[:12]
    run_dir = Path(output) / "discover" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=f"discover/{name}", experiment="", kind=KIND, config=tree, seeds={"seed": config.seed},
        metrics=records_of(config, samples, found, chosen, factors), started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    pictures = _pictures(samples, found, chosen)
    for file, text in ((CSV_FILE, render_csv(result)), (PAGE_FILE, render_discovery(result, pictures))):
        with atomic_file(run_dir / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_result(result, run_dir / RESULT_FILE)
    return Written(found=found, result=run_dir / RESULT_FILE)


def _all_images(samples: DiscoverySamples) -> Pixels:
    assert samples.images is not None
    images = samples.images(range(len(samples.features)))
    if len({image.shape for image in images}) > 1:
        raise ConfigError("the images have several sizes; the reader needs those of its own resolution.")
    return np.stack(images)


def _pictures(samples: DiscoverySamples, found: Discovery, chosen: Examples) -> dict[str, dict[str, list[Example]]]:
    """Return the examples of each component, by its number on the page and end."""
    if samples.images is None:
        return {}
    numbers = sorted({i for ends in chosen.values() for end in ends for i in end})
    uris = {i: _uri(image) for i, image in zip(numbers, samples.images(numbers), strict=True)}
    pictures = {}
    for number, one in enumerate(found.findings, 1):
        if one.component in chosen:
            pictures[str(number)] = {
                end: [_example(samples, found, one.component, i, uris[i]) for i in rows]
                for end, rows in zip((HIGH, LOW), chosen[one.component], strict=True)
            }
    return pictures


def _example(samples: DiscoverySamples, found: Discovery, component: int, i: int, uri: str) -> Example:
    score = float(found.components.scores[i, component])
    subject = samples.design.names[int(samples.design.subjects[i])]
    caption = samples.captions[i]
    about = subject if caption in ("", subject) else f"{subject}: {caption}"
    return Example(uri=uri, subject=subject, hint=f"{samples.keys[i]} at {score:+.2f}; {about}")


def _uri(image: Pixels) -> str:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return data_uri(buffer.getvalue())
