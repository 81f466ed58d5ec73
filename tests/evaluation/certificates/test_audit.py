"""Certificates of audits, from files and callables."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffprobe.analysis.certification.intervals import share_interval
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.evaluation.certificates import audit
from diffprobe.evaluation.certificates.method import Method
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
ROLES = list(SPEC.names("role"))
FEW = {"n_permutations": 49, "n_resamples": 30}


def counted(world: str, seed: int, n: int = 400) -> dict[str, tuple[float, float, float]]:
    """Rates that are counted in n images of each role of a world."""
    generator, number = np.random.default_rng(seed), SPEC.world(world)
    hits = [int(generator.binomial(n, role.striped[number])) for role in SPEC.roles]
    return {role: (k / n, *share_interval(k, n, 0.95)) for role, k in zip(ROLES, hits, strict=True)}


def write(path: Path, triples: dict[str, tuple[float, float, float]], **more: object) -> Path:
    tree = {"format": audit.FORMAT, "level": 0.95, **more}
    tree.setdefault("rates", {role: dict(zip(("rate", "low", "high"), r, strict=True)) for role, r in triples.items()})
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "own.json", counted("planted", 0)), write(tmp_path / "twin.json", counted("permuted", 1)),
    )  # fmt: skip


def test_a_right_audit_passes_and_the_words_fail(files: tuple[Path, Path]) -> None:
    own, twin = files
    assert audit.accepts(own) and not audit.accepts(own.parent)
    found = audit.certify(Method(name=str(own), path=own), audit.Config(twin=str(twin), **FEW))
    assert found.verdict == "pass", [(c.name, c.target, c.value) for c in found.method.checks if c.passed is False]
    (words,) = found.baselines
    assert {check.name for check in words.checks if check.passed is False} >= {"separation", "spearman"}


def test_the_same_audit_of_both_worlds_fails(files: tuple[Path, Path]) -> None:
    own, _ = files
    assert audit.certify(Method(name=str(own), path=own), audit.Config(twin=str(own), **FEW)).verdict == "fail"


def test_coverage_is_judged_on_generated_rates_where_they_are_given(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """A model whose rates are .1 higher: the audit is right about the model, and not about the plan."""
    own, twin = files
    rates = {role: (min(1, r + 0.1), min(1, lo + 0.1), min(1, hi + 0.1))
             for role, (r, lo, hi) in counted("planted", 0).items()}  # fmt: skip
    model = write(tmp_path / "model.json", rates)
    config = audit.Config(twin=str(twin), generated=str(model), **FEW)
    found = audit.certify(Method(name=str(model), path=model), config)
    checks = {(check.name, check.target): check.passed for check in found.method.checks}
    assert checks["coverage", "planted"] is None and checks["coverage", "planted, generated"] is True
    assert checks["coverage", "permuted"] is True
    assert list(found.not_measured) == ["coverage of rates generated in permuted"]


def test_a_callable_audits_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audits_of_ours.py").write_text(
        f"RATES = {{'a': {counted('planted', 2)!r}, 'b': {counted('permuted', 3)!r}}}\n"
        "def count(model, roles):\n    return {role: RATES[model][role] for role in roles}\n"
        "def short(model, roles):\n    return {role: (0.5, 0.4) for role in roles}\n"
        "def some(model, roles):\n    return {'cook': (0.5, 0.4, 0.6)}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = audit.Config(model="a", twin_model="b", **FEW)
    assert audit.certify(Method(name="audits_of_ours:count"), config).verdict == "pass"
    with pytest.raises(ConfigError, match="audits_of_ours:short"):
        audit.certify(Method(name="audits_of_ours:short"), config)
    with pytest.raises(ConfigError, match="audits_of_ours:some"):
        audit.certify(Method(name="audits_of_ours:some"), config)
    with pytest.raises(ConfigError, match="both models"):
        audit.certify(Method(name="audits_of_ours:count"), audit.Config(model="a"))


def test_an_audit_needs_its_twin(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="twin"):
        audit.certify(Method(name="own", path=files[0]), audit.Config())


@pytest.mark.parametrize(
    ("more", "error", "fact"),
    [
        ({"format": "x/2"}, SchemaError, "x/2"),
        ({"level": "high"}, SchemaError, "high"),
        ({"level": 1.5}, ConfigError, "1.5"),
        ({"rates": []}, SchemaError, "rates"),
        ({"rates": {}}, ConfigError, "roles"),
        ({"extra": 1}, SchemaError, "extra"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, more: dict[str, object], error: type[Exception], fact: str) -> None:
    with pytest.raises(error, match=fact):
        audit.read_audit(write(tmp_path / "a.json", counted("planted", 0), **more), ROLES)


def test_a_rate_out_of_range_or_order_is_refused(tmp_path: Path) -> None:
    for triple, fact in (((0.5, 0.6, 0.7), "0.6"), ((1.5, 0.4, 1.6), "1.5")):
        with pytest.raises(ConfigError, match=fact):
            audit.read_audit(write(tmp_path / "a.json", {**counted("planted", 0), "cook": triple}), ROLES)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"least_slope": 1.3}, "least_slope=1.3"), ({"most_bias": 2.0}, "most_bias=2"),
        ({"twin_world": "planted"}, "planted"), ({"n_permutations": 3}, "n_permutations=3"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        audit.Config(**settings)  # type: ignore[arg-type]
