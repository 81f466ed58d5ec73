"""Hostile checkpoints, probes and autoencoders end in one error that names the file, in bounded time and memory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.harness import Canary, Outcome, assert_refused, attempt, canary
from tests.hostile.models import CASES, Case

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow  # four minutes: each attempt is a process


def read_pipeline(folder: str) -> None:
    import torch

    from diffprobe.backbones.extractor import DiffusionFeatures

    model = DiffusionFeatures.from_pretrained(
        folder, taps=["up_blocks.1"], timesteps=[5], condition="prompt", prompt="red cat", device="cpu"
    )
    model(torch.full((1, 3, 32, 32), 0.5), keys=["a"])
    model.fingerprint  # noqa: B018  # hashes all files


def read_probe(folder: str) -> None:
    from diffprobe.probes.sae import KSAE

    KSAE.from_pretrained(folder)


def read_classifier(folder: str) -> None:
    from diffprobe.probes.classifier.linear import LinearProbe

    LinearProbe.from_pretrained(folder)


def read_saelens(folder: str) -> None:
    from diffprobe.probes.sae.convert import from_saelens

    from_saelens(folder)


def read_learning(folder: str) -> None:
    from diffprobe.probes.sae.convert import from_dictionary_learning

    from_dictionary_learning(folder)


READERS: dict[str, Callable[[str], None]] = {
    "pipeline": read_pipeline,
    "probe": read_probe,
    "classifier": read_classifier,
    "saelens": read_saelens,
    "learning": read_learning,
}


@pytest.fixture(scope="module")
def bases(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid folder of every kind."""
    import torch

    from diffprobe.probes.classifier.linear import LinearProbe
    from diffprobe.probes.sae import convert, topk

    root = tmp_path_factory.mktemp("bases")
    sae = topk.make(topk.Config(k=4, n_latents=48), 12, seed=0)
    sae.save_pretrained(root / "probe")
    LinearProbe().fit(torch.randn(40, 6), torch.arange(40) % 3).save_pretrained(root / "classifier")
    convert.to_saelens(sae, root / "saelens")
    convert.to_dictionary_learning(sae, root / "learning")
    return {"pipeline": tiny_sd, **{name: root / name for name in READERS if name != "pipeline"}}


def run(case: Case, folder: Path) -> Outcome:
    return attempt(READERS[case.base], folder, seconds=30)


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_folders_are_read(name: str, bases: dict[str, Path]) -> None:
    outcome = attempt(READERS[name], bases[name])
    assert outcome.status == 0, outcome.stderr


def test_there_are_enough() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 90


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_input_is_refused_by_name(case: Case, bases: dict[str, Path], tmp_path: Path, canary: Canary) -> None:
    folder = shutil.copytree(bases[case.base], tmp_path / "input")
    path = folder / case.file
    for place in {folder, path.parent}:
        (place / "payload.bin").write_bytes(canary.torch_file())
        (place / "payload.py").write_text(canary.source())
    case.damage(path)
    names = ("input",) if case.names is None else case.names
    own = (path.name,) if case.names is None else ()
    assert_refused(run(case, folder), *names, *own, seconds=20)
