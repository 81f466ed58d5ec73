"""Fixtures for all tests: a tiny pipeline and a tiny shard set, written once by the code that writes real ones.

Imports stand inside the fixtures, so that a test that needs neither starts at once.
"""

import gc
import io
import json
import operator
import os
import random
import resource
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything of diffprobe is imported: its annotations are checked from here on, also in processes of the tests.
TYPECHECK = Path(__file__).with_name("typecheck")
sys.path.insert(0, str(TYPECHECK))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TYPECHECK), *filter(None, [os.environ.get("PYTHONPATH")])])
import shape_checks  # noqa: E402

shape_checks.install()
collect_ignore = ["typecheck"]

# A shell without job control starts background commands with Ctrl-C ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The libraries make a million objects that live as long as the process: looking for cycles among them took a tenth of
# the time of the suite.
gc.set_threshold(50_000, 20, 50)

# The suite runs without network: a test that reaches for a hub or a tracker has to fail, not wait.
os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_SILENT": "true"})
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("DIFFPROBE_CONFIGS", None)

# The first torch call takes longer than the default deadline; examples repeat, so that a failure can be repeated.
settings.register_profile("diffprobe", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("diffprobe")

STYLES, GROUPS, COLOURS = ("noto", "twemoji"), ("round", "square"), ("red", "green", "blue")
N_SLOWEST = int(os.environ.get("DIFFPROBE_SLOWEST", "20"))
_STARTED = pytest.StashKey[float]()
COUNTS = {"train": (3, 16), "val": (2, 4), "test": (2, 4)}  # split -> (shards, samples)


@pytest.fixture
def no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the shape checks off in a test of what diffprobe itself reports about a wrong shape."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


_CPU_SECONDS: dict[str, float] = defaultdict(float)
_PEAK_MEMORY: list[int] = []  # KiB, one number per process of the run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Note when the setup, the test or the teardown starts, in CPU time: wall time depends on what else runs."""
    item.stash[_STARTED] = _cpu_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the CPU seconds since the last report of the same test into this one, which pytest-xdist sends on."""
    report = yield
    started, item.stash[_STARTED] = item.stash[_STARTED], _cpu_time()
    report.user_properties = [*report.user_properties, ("cpu_seconds", item.stash[_STARTED] - started)]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the CPU seconds of one test; with pytest-xdist the process that prints receives all reports."""
    _CPU_SECONDS[report.nodeid] += dict(report.user_properties).get("cpu_seconds", 0.0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the peak memory of a worker of pytest-xdist."""
    _PEAK_MEMORY.append(getattr(node, "workeroutput", {}).get("peak_memory", 0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Note the peak memory of this process and of the largest process that it started."""
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = peak
    elif not _PEAK_MEMORY:
        _PEAK_MEMORY.append(peak)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the 20 tests with the most CPU time, the sum of all, and an upper bound of the memory in use at once."""
    slowest = sorted(_CPU_SECONDS.items(), key=lambda entry: -entry[1])[:N_SLOWEST]
    terminalreporter.section(f"{len(slowest)} slowest tests, in seconds of CPU time with the processes they start")
    for name, seconds in slowest:
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
    memory = sum(_PEAK_MEMORY) / 2**20
    terminalreporter.write_line(f"{sum(_CPU_SECONDS.values()):8.1f}  all tests; peak memory at most {memory:.1f} GiB")


def _cpu_time() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same global seeds, whatever ran before it."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if name in sys.modules:  # a library that is not loaded yet starts from its own fixed state or is not used
            operator.attrgetter(seed)(sys.modules[name])(0)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny StableDiffusionPipeline with random weights, in diffusers format."""
    from diffprobe.backbones.families import sd_unet

    path = tmp_path_factory.mktemp("tiny_sd")
    sd_unet.tiny(path)
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny sentence encoder with random weights, in transformers format; it knows five whole words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [mark + chr(code) for mark in ("", "##") for code in range(ord("a"), ord("z") + 1)]
    entries = [*special, *letters, "cat", "dog", "red", "blue", "mat", ","]
    fast = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", entries.index("[CLS]")), ("[SEP]", entries.index("[SEP]"))]
    )
    path = tmp_path_factory.mktemp("tiny_teacher")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(entries), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        )
        BertModel(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIP model with random weights, tokenizer and image processor, in transformers format."""
    import torch

    from diffprobe.backbones.testing.tiny_text import tiny_clip

    path = tmp_path_factory.mktemp("tiny_clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_clip(path)
    return path


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an indexed shard set: 24 captioned drawings of 32 x 32, classes and attributes that can be seen.

    train has 3 shards (6, 5, 5 samples), val and test 2 each (2, 2). Class = shape and colour, 6 classes; attributes
    style (the outline), group (the shape), colour.
    """
    from diffprobe.shards.index import build_index
    from diffprobe.shards.writer import write_shard

    root = tmp_path_factory.mktemp("tiny_shards")
    samples = list(_drawings())
    for split, (n_shards, n_samples) in COUNTS.items():
        chosen, samples = samples[:n_samples], samples[n_samples:]
        for shard in range(n_shards):
            write_shard(root / f"{split}-{shard:04d}.tar", chosen[shard::n_shards])
    build_index(root, name="tiny", licence="CC0-1.0")
    return root


def _drawings() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield 24 samples that run through style, group and colour, so that every split holds every attribute value."""
    for i in range(24):
        style, group, colour = STYLES[i % 2], GROUPS[i // 2 % 2], COLOURS[i % 3]
        caption = f"{style} emoji, {colour} {group}"
        record = {
            "label": GROUPS.index(group) * len(COLOURS) + COLOURS.index(colour),
            "class_name": f"{colour} {group}",
            "caption": caption,
            "captions": [caption, f"{caption}, shape"],
            "attributes": {"style": style, "group": group, "colour": colour},
        }
        yield f"tiny/{i:02d}", {"png": _draw(i, style, group, colour), "json": json.dumps(record).encode()}


def _draw(i: int, style: str, group: str, colour: str) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(image)
    box = (3 + i % 5, 4 + i % 3, 24 + i % 5, 25 + i % 4)
    draw = pen.ellipse if group == "round" else pen.rectangle
    draw(box, fill=colour, outline="black" if style == "noto" else colour, width=2)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny_study(
    tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Settings of `diffprobe demo` for `tests/tiny_study`, whose files are on the search path. Stores are shared."""
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(Path(__file__).parent / "tiny_study"))
    return [
        "experiment=tiny/demo",
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        f"features.store={tmp_path_factory.getbasetemp() / 'demo-stores'}",
    ]
