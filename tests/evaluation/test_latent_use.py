"""`eval latents` on a planted model: the used latent is found, and nothing else."""

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from diffprobe.config.compose import load
from diffprobe.core.errors import SchemaError, TooFewGroups
from diffprobe.core.result import read_result
from diffprobe.evaluation.latent_use import ERRORS, evaluate_latents
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.scoring.intervention_network import InterventionNetwork
from tests.evaluation.planted_use import N_LATENTS, SILENT, UNUSED, USED


@pytest.fixture(scope="module")
def config(planted_use, tmp_path_factory):
    return LatentUseEvaluation(
        experiment="planted/use", run=str(planted_use), limit=24, controls=("random_direction", "random_latent"),
        n_resamples=100, n_permutations=999, device="cpu", output=str(tmp_path_factory.mktemp("use")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(config):
    return evaluate_latents(config)


def rows_of(path: Path) -> dict[int, dict[str, str]]:
    with (path.parent / "latents.csv").open(newline="") as file:
        return {int(row["latent"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_the_used_latent_is_found_and_the_unused_one_costs_nothing(evaluated) -> None:
    rows = rows_of(evaluated)
    assert {latent: row["used"] for latent, row in rows.items()} == {USED: "1", UNUSED: "0", SILENT: ""}
    used, unused = rows[USED], rows[UNUSED]
    assert float(used["delta_mse_low"]) > 0 and float(used["above_random_direction_low"]) > 0
    assert int(unused["active_images"]) > 12 and abs(float(unused["relative_delta_mse"])) < 1e-6
    assert float(unused["random_direction"]) > 1e-6  # what is taken out there in other directions costs something
    assert float(used["relative_delta_mse"]) > 100 * abs(float(unused["relative_delta_mse"]))


@pytest.mark.slow
def test_a_latent_that_never_fires_is_stated_and_has_no_zeros(evaluated) -> None:
    row = rows_of(evaluated)[SILENT]
    assert row["active_images"] == "0" and {
        row[name] for name in ("delta_mse", "relative_delta_mse", "use_p", "use_q", "used")
    } == {""}
    record = next(record for record in read_result(evaluated).metrics if record.name == "used_share")
    assert record.value == 0.5 and record.detail["n_never_active"] == 1 and record.detail["n_latents"] == N_LATENTS


@pytest.mark.slow
def test_the_result_walks_back_to_the_run(evaluated, planted_use) -> None:
    result, source = read_result(evaluated), read_result(planted_use / "result.json")
    assert result.kind == "latent_use" and result.config["run"] == source.run and "output" not in result.config
    assert result.artifacts["input/probes/sae"] == source.artifacts["probes/sae"]
    for record in result.metrics:
        assert record.split == "test" and record.cell == "up_blocks.2@t900:empty:none" and record.probe == "topk"
    assert (evaluated.parent / "read-and-use.png").stat().st_size > 1000


def changed(config, **keys):
    return dataclasses.replace(config, **keys)


@pytest.mark.slow
def test_an_interrupted_call_continues_after_finished_blocks(config, evaluated, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("diffprobe.evaluation.latent_use._BLOCK", 1)
    again, passes = changed(config, output=str(tmp_path)), []
    errors_of = InterventionNetwork.errors_of

    def fail_late(*args):
        passes.append(args)
        if len([one for one in passes if one[5] is not None]) > 6:
            raise KeyboardInterrupt
        return errors_of(*args)

    monkeypatch.setattr(InterventionNetwork, "errors_of", fail_late)
    with pytest.raises(KeyboardInterrupt):
        evaluate_latents(again)
    kept = list(tmp_path.glob(f"planted/use/{ERRORS}/*/*.safetensors"))
    assert len(kept) == 1 and not list(tmp_path.rglob("result.json"))
    monkeypatch.setattr(InterventionNetwork, "errors_of", lambda *args: passes.append(args) or errors_of(*args))
    path = evaluate_latents(again)
    assert rows_of(path) == rows_of(evaluated) and path.parent.name == evaluated.parent.name
    assert read_result(path).metrics == read_result(evaluated).metrics
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob(f"planted/use/{ERRORS}/*/*")}
    evaluate_latents(changed(again, n_resamples=50))  # other intervals of the same errors
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob(f"planted/use/{ERRORS}/*/*")}


@pytest.mark.slow
def test_chosen_latents_have_the_numbers_that_they_have_among_all(config, evaluated) -> None:
    alone = rows_of(evaluate_latents(changed(config, latents=(UNUSED, USED))))
    whole = rows_of(evaluated)
    assert list(alone) == [USED, UNUSED]
    for latent, row in alone.items():
        assert float(row["delta_mse"]) == pytest.approx(float(whole[latent]["delta_mse"]), abs=1e-6)
        assert row["use_p"] == whole[latent]["use_p"]
    best = rows_of(evaluate_latents(changed(config, n_latents=1)))
    known = {latent: float(row["read_auroc"]) for latent, row in whole.items() if row["read_auroc"]}
    assert list(best) == [max(known, key=lambda latent: (known[latent], -latent))]


@pytest.mark.slow
def test_groups_are_families_if_they_are_named(config, evaluated) -> None:
    rows = rows_of(evaluate_latents(changed(config, group_attribute="family")))
    assert rows[USED]["active_groups"] == "12" and rows_of(evaluated)[USED]["active_groups"] == "24"
    assert rows[USED]["delta_mse"] == rows_of(evaluated)[USED]["delta_mse"]
    with pytest.raises(TooFewGroups, match="1 group"):
        evaluate_latents(changed(config, group_attribute="family", limit=2))


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused(config, evaluated, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(evaluated.parents[3], tmp_path, dirs_exist_ok=True)
    again = changed(config, output=str(tmp_path), n_resamples=30)
    name = next(evaluated.parents[1].glob(f"{ERRORS}/*/000000-*")).relative_to(evaluated.parents[1])
    path = tmp_path / "planted/use" / name
    tensors = load_file(path)
    for broken in ({**tensors, "rise": tensors["rise"][:1]}, {"latent": torch.zeros(1)}):
        save_file(broken, path)
        with pytest.raises(SchemaError, match=r"does not hold(.|\n)*remove the folder"):
            evaluate_latents(again)
    path.write_bytes(b"short")
    with pytest.raises(SchemaError, match="remove the folder"):
        evaluate_latents(again)


def test_the_experiments_are_of_this_kind() -> None:
    for name in ("emoji/latent_use", "scenes/latent_use"):
        assert isinstance(load(name, ["run=runs/x"]), LatentUseEvaluation)
