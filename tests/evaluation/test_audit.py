"""Audits from a folder of latents to files, and their certification on the planted rates of `scenes`."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffprobe.analysis.audit.prompts import all_prompts
from diffprobe.analysis.audit.spec import AuditSpec
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.result import read_result
from diffprobe.evaluation.audit import CSV_FILE, PAGE_FILE, RATES_FILE, audit
from diffprobe.evaluation.audit_inputs import load_arrays, read_latents, read_rates, write_arrays
from diffprobe.evaluation.audit_settings import Audit, Reference
from diffprobe.evaluation.certificates.audit import Config, certify
from diffprobe.evaluation.certificates.method import Method
from diffprobe.shards.scenes.world import load_world
from tests.analysis.audit.world import World
from tests.evaluation.audit_world import RATES, TEXTURE, TONE, rates_csv, settings, shuffled, write_store


def test_an_audit_is_written_and_read_back(tmp_path: Path) -> None:
    config = settings(axes=(TEXTURE, TONE), cells=("mid@t1", "up@t2"))
    store = write_store(tmp_path / "store", config)
    words = World(dict.fromkeys(RATES, 0.5), n_seeds=1, noise=0.0).latents(config)
    write_arrays(tmp_path / "words", words.prompts, {"text": words.features})
    config = replace(
        config, store=str(store), output=str(tmp_path / "runs"), words_only=str(tmp_path / "words"), reader="people",
        rates=str(rates_csv(tmp_path / "images.csv", RATES)),
        reference=Reference(name="training data", table=str(rates_csv(tmp_path / "train.csv", shuffled(RATES)))),
    )  # fmt: skip
    written = audit(config)
    assert {path.name for path in written.result.parent.iterdir()} == {"result.json", CSV_FILE, PAGE_FILE, RATES_FILE}
    result = read_result(written.result)
    assert result.kind == "audit" and result.metrics[0].detail["rates_of"] == "generated images, read by people"
    assert set(result.artifacts) == {f"input/{name}" for name in ("latents/mid@t1", "latents/up@t2", "words/text",
                                                                  "rates",
                                                                  "reference")}  # fmt: skip
    other = [record for record in result.metrics if record.name == "cell_rank_correlation"]
    assert [(record.target, record.cell) for record in other] == [("texture", "up@t2"), ("tone", "up@t2")]
    assert all("words_only" in record.controls for record in result.metrics if record.name == "association")
    assert "training data" in written.page.read_text() and "Association and images" in written.page.read_text()
    again = audit(config)
    assert again.result == written.result
    assert read_result(again.result).metrics == result.metrics


def test_the_folder_follows_from_what_was_measured(tmp_path: Path) -> None:
    config = settings(n_templates=4)
    one = replace(config, store=str(write_store(tmp_path / "a", config)), output=str(tmp_path))
    other = replace(config, store=str(write_store(tmp_path / "b", config)), output=str(tmp_path))
    changed = replace(config, store=str(write_store(tmp_path / "c", config, seed=9)), output=str(tmp_path))
    assert audit(one).result == audit(other).result != audit(changed).result


def test_without_latents_it_states_how_to_make_them(tmp_path: Path) -> None:
    config = settings(n_templates=4)
    with pytest.raises(ConfigError) as caught:
        audit(config)
    assert f"{len(all_prompts(config))} prompts" in str(caught.value) and "--prompts" in str(caught.value)
    store = write_store(tmp_path / "s", config)
    with pytest.raises(StoreMismatch, match="mid@t2"):
        audit(replace(config, store=str(store), cells=("mid@t2",), output=str(tmp_path)))
    with pytest.raises(ConfigError, match="view 4 of a"):
        audit(replace(settings(n_templates=5), store=str(store), output=str(tmp_path)))


def test_another_loader_gives_the_same_audit(tmp_path: Path) -> None:
    config = settings(n_templates=4)
    config = replace(config, store=str(write_store(tmp_path / "s", config)), output=str(tmp_path))

    def load_reversed(store: Path, cell: str):  # type: ignore[no-untyped-def]
        features, prompts, attributes = load_arrays(store, cell)
        return features[::-1], prompts[::-1], attributes

    one = read_result(audit(config).result)
    assert read_result(audit(config, load=load_reversed).result).metrics == one.metrics


def test_a_single_seed_writes_no_rates(tmp_path: Path) -> None:
    config = settings(n_templates=4)
    written = audit(replace(config, store=str(write_store(tmp_path / "s", config, n_seeds=1)), output=str(tmp_path)))
    assert written.rates is None and not written.result.with_name(RATES_FILE).exists()


def test_audits_of_both_worlds_are_certified_and_the_words_are_not(tmp_path: Path) -> None:
    """The experiment of `scenes` on a synthetic model with the planted rates, and on its twin."""
    spec = load_world()
    config: Audit = load("audits/scenes", ["cells=[mid@t1]", "n_resamples=200", "n_permutations=99"], kinds=("audit",))
    config = replace(config, templates=config.templates[:6])
    files, truths = [], []
    for world in ("planted", "permuted"):
        number = spec.world(world)
        rates = {role.name: role.striped[number] for role in spec.roles}
        latents = World(rates, n_seeds=100, d=12, distance=5.0, same_side=0.5, seed=number).latents(config)
        write_arrays(tmp_path / world, latents.prompts, {"mid@t1": latents.features})
        written = audit(replace(config, store=str(tmp_path / world), output=str(tmp_path / f"runs-{world}")))
        assert written.rates is not None
        files.append(written.rates)
        truths.append(rates)
    settings_ = {"n_permutations": 199, "n_resamples": 60}
    found = certify(Method(name="m", path=files[0]), Config(twin=str(files[1]), **settings_))  # type: ignore[arg-type]
    failed = [(c.name, c.target, round(c.value, 3)) for c in found.method.checks if c.passed is False]
    assert found.verdict == "pass", failed
    same = certify(Method(name="m", path=files[0]), Config(twin=str(files[0]), **settings_))  # type: ignore[arg-type]
    assert same.verdict == "fail"
    assert read_rates(files[0], list(truths[0])).low is not None


def test_shipped_audits_have_enough_templates_and_their_size() -> None:
    for name, n_subjects in (("audits/emoji", 40), ("audits/occupations", 153), ("audits/scenes", 24)):
        config: AuditSpec = load(name, [], kinds=("audit",))
        assert len(config.subjects) == n_subjects and not config.has_few_templates
    roles = [role.name for role in load_world().roles]
    assert [one.name for one in config.all_subjects] == roles


def test_templates_of_scenes_are_captions_of_that_world() -> None:
    from diffprobe.shards.scenes.captions import parse

    config: AuditSpec = load("audits/scenes", [], kinds=("audit",))
    textures = {parse(load_world(), text).get("texture") for text in all_prompts(config)}
    assert textures == {None, "striped", "plain"}


def test_read_latents_of_a_cell_are_those_written(tmp_path: Path) -> None:
    config = settings(n_templates=4, cells=("mid@t1", "up@t2"))
    store = write_store(tmp_path / "s", config)
    assert read_latents(store, "mid@t1").prompts == all_prompts(config)
