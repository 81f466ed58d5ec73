"""Names of runs side by side: the settings in which they differ, unique, and short."""

import dataclasses

from diffprobe.report.run_names import run_names


def runs(sae_run, *configs, **changes):
    return [
        sae_run(0.5, run=f"r{i}", config={"control": "none", **config}, **{k: v[i] for k, v in changes.items()})
        for i, config in enumerate(configs)
    ]


def test_settings_in_which_runs_differ_are_their_names(sae_run):
    found = runs(
        sae_run,
        {"probe": {"name": "topk", "params": {"k": 8}}},
        {"probe": {"name": "topk", "params": {"k": 16}}},
        {"probe": {"name": "jumprelu", "params": {"k": 16}}},
    )
    assert run_names(found) == ["topk, k=8", "topk, k=16", "jumprelu, k=16"]


def test_what_follows_from_another_setting_is_left_out_and_paths_are_short(sae_run):
    found = runs(
        sae_run,
        {"data": {"path": "/far/away/pets"}, "probe": {"params": {"k": 8}}},
        {"data": {"path": "/far/away/cars"}, "probe": {"params": {"k": 16}}},
    )
    assert run_names(found) == ["pets", "cars"]


def test_lists_and_absent_settings_have_names(sae_run):
    found = runs(
        sae_run, {"features": {"taps": ["mid", "up"]}}, {"features": {"taps": None}}, {"features": {"taps": ["up"]}}
    )
    assert run_names(found) == ["taps=mid+up", "taps=none", "taps=up"]


def test_seeds_and_runs_tell_equal_settings_apart(sae_run):
    assert run_names(runs(sae_run, {}, {}, seeds=[{"run": 0}, {"run": 1}])) == ["run seed 0", "run seed 1"]
    assert run_names(runs(sae_run, {}, {})) == ["run r0", "run r1"]
    other = runs(sae_run, {}, {}, artifacts=[{"input/shards": "a"}, {"input/shards": "b"}])
    assert run_names(other) == ["run r0", "run r1"]
    same = runs(sae_run, {"probe": {"k": 1}}, {"probe": {"k": 1}}, {"probe": {"k": 2}})
    assert len(set(run_names(same))) == 3 and "run r0" in run_names(same)[0]


def test_one_run_is_called_by_its_name(sae_run):
    assert run_names([dataclasses.replace(sae_run(0.5), run="only")]) == ["run only"]
