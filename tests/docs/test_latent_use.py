"""The page about latents, read and used: tables are those of the recorded results, settings those of the code."""

import dataclasses
import re

from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

TEXT = (ROOT / "docs/users/latent-use.md").read_text("utf-8")
record_latent_use = script("record_latent_use")


def test_the_tables_are_made_from_the_recorded_results() -> None:
    assert record_latent_use.recorded() and record_latent_use.with_tables(TEXT) == TEXT


def test_the_recorded_tables_and_results_agree() -> None:
    for result, rows in record_latent_use.recorded().values():
        assert result.kind == "latent_use" and "output" not in result.config
        used = next(record for record in result.metrics if record.name == "used_share")
        assert sum(row["used"] == "1" for row in rows) == used.detail["n_used"]
        assert len(rows) == used.detail["n_latents"]
        assert sum(row["used"] == "" for row in rows) == used.detail["n_never_active"]


def test_every_setting_is_named_with_its_default() -> None:
    table = TEXT.partition("| setting |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])))
    fields = {field.name: field.default for field in dataclasses.fields(LatentUseEvaluation)}
    assert named == set(fields) - {"experiment", "run", "output"}
    for name in ("limit", "read_limit", "n_prompts", "seed"):
        assert re.search(rf"^\| `{name}` \| {fields[name]} \|", table, re.MULTILINE), name
    assert f"| {fields['n_resamples']}, {fields['n_permutations']} |" in table


def test_a_latent_that_held_out_images_do_not_measure_has_no_value() -> None:
    assert record_latent_use._reads({"reads": "style=ink", "read_auroc": "0.75"}) == ["style=ink", "0.750"]
    assert record_latent_use._reads({"reads": "", "read_auroc": ""}) == ["-", "-"]
