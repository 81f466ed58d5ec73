"""Plan an extraction on paper: which resource limits it, how long it takes and what it costs. Arithmetic only.

One process per GPU does for each image, one after the other: the network, the writing of the features, and the checksum
of the image's share of the shard. Beside it one loader worker reads and decodes. All processes share the storage.
Processes divide the shards without communication, so that rates grow with their number until a shared resource is full.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

from diffprobe.core.errors import ConfigError
from diffprobe.core.json_file import expect, read_json_object

STORAGE_READ, STORAGE_WRITE = "reading from the storage", "writing to the storage"
GPU, WRITE, CHECKSUM, DECODE = "the GPUs", "writing features", "checksums of shards", "reading and decoding"
CORES_PER_PROCESS = 2
"""The process itself and its loader worker."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one core does, as `diffprobe bench scaling` measures it. A megabyte is 10**6 bytes."""

    read_mb_s: float
    """Shards read into samples, from memory: MB/s."""
    checksum_mb_s: float
    """Checksum of a shard: MB/s."""
    decode_images_s: float
    """Images decoded, fitted to the backbone's resolution and put into batches: images/s."""
    write_mb_s: float
    """Features written to a store, with checksum and flush: MB/s."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The extraction, and the machines."""

    gpu_images_s: float
    """Images/s of the network on one GPU, for all its cells; `diffprobe bench extraction` measures it."""
    gpus: int
    """Number of GPUs, with one process each."""
    images: int
    """Number of images."""
    image_bytes: float
    """Mean bytes of a sample in its shard."""
    feature_bytes: float
    """Bytes of the features of an image: 4 x cells x width, for one vector per cell."""
    storage_read_mb_s: float
    """Bandwidth of the storage for reading, all processes together: MB/s."""
    storage_write_mb_s: float
    """Bandwidth of the storage for writing, all processes together: MB/s."""
    verify: bool = True
    """Whether each shard's checksum is compared (`data.verify`), which reads the shard once more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The outcome."""

    limit: str
    """The resource that limits the rate."""
    images_s: float
    """Images per second of all processes."""
    capacity: dict[str, float]
    """Resource -> images/s that it would allow alone."""
    hours: float
    """Wall time."""
    gpu_hours: float
    core_hours: float
    store_tb: float
    """Size of the store in 10**12 bytes."""
    read_tb: float
    """Bytes read from the storage, in 10**12."""

    @property
    def busy(self) -> dict[str, float]:
        """Resource -> share of its time in which it works, from 0 to 1."""
        return {name: self.images_s / rate for name, rate in self.capacity.items()}


def read_rates(path: Path | str) -> Rates:
    """Read the rates of a report that `diffprobe bench scaling --json` wrote.

    Raises: SchemaError if it is not one; ConfigError for a rate that is not above 0.
    """
    record = read_json_object(Path(path))
    found = expect(record.get("rates"), dict, where=f"'{path}': rates")
    names = Rates.__dataclass_fields__
    rates = {}
    for name in names:
        value = found.get(name)
        rates[name] = float(value) if type(value) is int else expect(value, float, where=f"'{path}': rates.{name}")
        if not rates[name] > 0:
            raise ConfigError(f"'{path}': rates.{name}={rates[name]} is out of range: more than 0.")
    return Rates(**rates)


def plan_extraction(rates: Rates, work: Work) -> Plan:
    """Compute the plan of an extraction.

    Raises: ConfigError for a rate or number that is not above 0 and finite.
    """
    for part in (rates, work):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name != "verify" and not (0 < value < math.inf):
                raise ConfigError(f"{field.name}={value} is out of range: more than 0, and finite.")
    image_mb, feature_mb = work.image_bytes / 1e6, work.feature_bytes / 1e6
    of_image = {  # seconds per image of the main process, one after the other
        GPU: 1 / work.gpu_images_s,
        WRITE: feature_mb / rates.write_mb_s,
        CHECKSUM: image_mb / rates.checksum_mb_s if work.verify else 0.0,
    }
    decode = image_mb / rates.read_mb_s + 1 / rates.decode_images_s
    n_reads = 2 if work.verify else 1
    capacity = {name: work.gpus / seconds for name, seconds in of_image.items() if seconds}
    capacity[DECODE] = work.gpus / decode
    capacity[STORAGE_READ] = work.storage_read_mb_s / (n_reads * image_mb)
    capacity[STORAGE_WRITE] = work.storage_write_mb_s / feature_mb
    main = work.gpus / sum(of_image.values())
    rate = min(main, capacity[DECODE], capacity[STORAGE_READ], capacity[STORAGE_WRITE])
    shared = (DECODE, STORAGE_READ, STORAGE_WRITE)
    limit = (
        max(of_image, key=lambda name: of_image[name])
        if main == rate
        else next(name for name in shared if capacity[name] == rate)
    )
    hours = work.images / rate / 3600
    return Plan(
        limit=limit,
        images_s=rate,
        capacity=capacity,
        hours=hours,
        gpu_hours=work.gpus * hours,
        core_hours=CORES_PER_PROCESS * work.gpus * hours,
        store_tb=work.images * work.feature_bytes / 1e12,
        read_tb=n_reads * work.images * work.image_bytes / 1e12,
    )


def render_plan(work: Work, plan: Plan) -> str:
    """Return the plan as a Markdown table with a line above it."""
    lines = [
        f"{work.images:,} images on {work.gpus:,} GPUs: limited by {plan.limit}.",
        "",
        "| resource | images/s that it allows | busy |",
        "|---|---|---|",
    ]
    for name, rate in sorted(plan.capacity.items(), key=lambda item: item[1]):
        lines.append(f"| {name} | {rate:,.0f} | {plan.busy[name]:.0%} |")
    lines += [
        "",
        "| images/s | wall time, h | GPU-hours | core-hours | store, TB | read, TB |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(
        f"| {plan.images_s:,.0f} | {plan.hours:,.1f} | {plan.gpu_hours:,.0f} | {plan.core_hours:,.0f} "
        f"| {plan.store_tb:,.2f} | {plan.read_tb:,.1f} |"
    )
    return "\n".join(lines)
