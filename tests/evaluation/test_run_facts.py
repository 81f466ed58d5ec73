"""Facts of runs: those of the disk, of the record where the disk has none, and once for each where they differ."""

from dataclasses import replace

from diffprobe.evaluation.page_features import with_data_path
from diffprobe.evaluation.run_facts import facts_of, machine_facts, recorded_facts, run_facts
from tests.evaluation.page_runs import opened


def test_facts_of_one_run(small_sae):
    (run,) = opened(small_sae)
    facts = dict(run_facts(run.config))
    assert facts["images"] == "tiny: 16 train, 4 val, 4 test" and facts["timesteps"].startswith("20 of 1,000")
    assert facts_of([run], [""]) == run_facts(run.config)
    limited = replace(run.config, data=replace(run.config.data, limit=2))
    assert "2 of 16 train" in dict(run_facts(limited))["images"]


def test_what_differs_is_given_for_each_and_the_record_replaces_the_disk(small_sae):
    (run,) = opened(small_sae)
    moved = with_data_path(run, "nowhere")
    facts = dict(facts_of([run, moved], ["here", "there"]))
    assert facts["shard set, there"].startswith("nowhere; digest ") and facts["taps"] == "mid_block"
    assert "images, here" in facts and "images, there" not in facts
    assert dict(recorded_facts(moved))["shard set"].endswith(run.result.artifacts["input/shards"][:16])


def test_machine_and_time_of_all_runs(small_sae, large_sae):
    results = [run.result for run in (*opened(small_sae), *opened(large_sae))]
    facts = dict(machine_facts(results))
    assert "cores" in facts["machine"] and facts["training"].endswith("s for 2 runs, without extraction")
