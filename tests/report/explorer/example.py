"""A small explorer of seeded records, of any number of latents and images."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from diffprobe.report.explorer.records import (
    ActivationMap,
    ActiveLatent,
    Bar,
    Bars,
    Column,
    CurvePoint,
    ExplorerFacts,
    ImagePage,
    LatentMatch,
    LatentPage,
    Name,
    Neighbour,
    TextColumn,
    TopImage,
)
from diffprobe.report.explorer.writer import ExplorerWriter

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'`${1}\u202ertl\u2028\x00\U0001f319 \u0634\u0645\u0633'
WORDS = ("moon", "night", "star", "cat", "dog", "flag", "red", "boat")
MAP = ActivationMap(height=2, width=3, values=bytes((0, 51, 102, 153, 204, 255)))


def facts(n_latents: int, n_images: int, run: str = "emoji/sae") -> ExplorerFacts:
    return ExplorerFacts(
        run=run, experiment="emoji/sae", model="emoji-sd", data="emoji, test", cells=("up_blocks.1@t200",),
        n_latents=n_latents, k=4, n_images=n_images, notes=("Numbers are of the split test.",),
    )  # fmt: skip


def columns(n_latents: int) -> list[Column]:
    """Frequency falls with the number of the latent; AUROC rises and is missing for latent 0."""
    return [
        Column(
            key="frequency", title="Frequency", help="Share of images.", kind="share",
            values=[(n_latents - i) / (2 * n_latents) for i in range(n_latents)], controls=(("raw neurons", 0.5),),
        ),
        Column(
            key="auroc", title="AUROC", help="Of the best class.",
            values=[None, *(0.5 + 0.5 * i / n_latents for i in range(1, n_latents))],
        ),
        Column(key="q", title="q", help="Corrected.", kind="p", values=[1e-60] * n_latents),
        Column(key="active", title="Active", help="Images.", kind="count", values=[2**24 + 1] * n_latents),
    ]  # fmt: skip


def texts(n_latents: int) -> list[TextColumn]:
    """Latent 0 has no text; of the others, odd ones have "class = a" and even ones a text with markup."""
    values = ["" if i == 0 else "class = a" if i % 2 else "style = <b>" for i in range(n_latents)]
    return [TextColumn(key="about", title="is about", help="Best value.", beside="auroc", values=values)]


def name_of(latent: int) -> str:
    return f"{WORDS[latent % len(WORDS)]} {latent}"


def page(latent: int, n_latents: int, n_images: int) -> LatentPage:
    """Every third latent has no name that passed; the last one is never active."""
    alive = latent != n_latents - 1
    return LatentPage(
        latent=latent,
        names=(
            Name(text=name_of(latent), score=2.5, auroc=0.9, q=1e-5, shown=latent % 3 != 0 and alive),
            Name(text="failed", score=0.5, auroc=None, q=None, shown=False),
        ),
        top=[TopImage(image=(latent + i) % n_images, activation=3.0 - i, map=MAP) for i in range(2)] if alive else [],
        histogram=[5, 0, 3] if alive else [0, 0, 0],
        histogram_end=3.0,
        groups=[Bars(group="class", bars=[Bar(value="a", n_images=4, n_active=1, mean_activation=0.25)])],
        curve=[CurvePoint(timestep=t, frequency=0.1, mean_activation=1.0) for t in (25, 200)],
        neighbours=[Neighbour(latent=(latent + 1) % n_latents, cosine=-0.5)],
        recurrence=[Neighbour(latent=3, cosine=0.8, run="seed 1")],
    )


def pages(n_latents: int, n_images: int) -> Iterator[LatentPage]:
    return (page(latent, n_latents, n_images) for latent in range(n_latents))


def picture(side: int = 16, colour: str = "red", form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, form)
    return stream.getvalue()


def images(n_images: int, n_latents: int, *, with_pictures: bool = True, caption: str = "") -> Iterator[ImagePage]:
    """Image i has the caption "picture i of a WORD", but for image 1, which has `caption` where that is given."""
    rng = random.Random(0)
    for i in range(n_images):
        yield ImagePage(
            key=f"key-{i}",
            caption=caption if caption and i == 1 else f"picture {i} of a {WORDS[i % len(WORDS)]}",
            label="a" if i % 2 else "b",
            attributes=(("style", "noto"),),
            latents=[ActiveLatent(latent=rng.randrange(n_latents), activation=2.0, map=MAP)],
            thumbnail=picture(colour="red" if i % 2 else "blue") if with_pictures else None,
        )


def write(folder: Path, *, n_latents: int = 40, n_images: int = 35, runs: int = 1, **settings: object) -> Path:
    """Write an explorer. Returns: its index.html."""
    writer = ExplorerWriter(folder)
    for number in range(runs):
        name = "emoji/sae" if number == 0 else "emoji/other"
        writer.run(
            facts(n_latents, n_images, name),
            columns(n_latents),
            pages(n_latents, n_images),
            images(n_images, n_latents, **settings),  # type: ignore[arg-type]
            texts(n_latents),
        )
    if runs == 2:
        writer.compare(
            [LatentMatch(latent=i, other=n_latents - 1 - i, similarity=i / n_latents) for i in range(n_latents)]
        )
    return writer.close()
