"""The tables on the quality of autoencoders in docs/benchmarks.md are those of the recorded measurements."""

import pytest

from diffprobe.benchmarks.ksae_quality import CLOSE, DEFAULT, OURS, QualityReport, Trial
from diffprobe.config.compose import load_run
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import rows

RECORDED = ROOT / "docs/results/ksae-quality"
TEXT = (ROOT / "docs/benchmarks.md").read_text("utf-8")
NAMES = {
    "emoji places": "emoji_places",
    "emoji pooled": "emoji_pooled",
    "scenes places": "scenes_places",
    "caltech grid": "caltech_1280",
}
"""Name of a set in the tables -> its files."""


def read(part: str, name: str) -> QualityReport:
    return QualityReport.from_json((RECORDED / part / f"{NAMES[name]}.json").read_text("utf-8"))


def test_the_sweep_is_that_of_the_recorded_trials() -> None:
    shown = rows(TEXT, "sweep")
    assert list(dict.fromkeys(row[0] for row in shown)) == list(NAMES)
    for name, width, latents, steps, *cells in shown:
        found = read("sweep", name)
        assert (str(found.d_in), f"{found.n_latents:,}") == (width, latents)
        trials = [t for t in found.trials if t.contender == OURS and str(t.steps) == steps and t.params["decay"] == 0.2]
        assert " / ".join(f"{1000 * t.learning_rate:g}" for t in trials) == cells[0]
        assert " / ".join(f"{t.test_fvu:.3f}" for t in trials) == cells[1]
        assert " / ".join(f"{t.dead:.1%}" for t in trials) == cells[2]


def test_the_comparison_is_that_of_the_recorded_trials() -> None:
    shown, expected = rows(TEXT, "set"), list[list[str]]()
    names = dict.fromkeys(row[0] for row in shown)
    for name in names:
        found = read("peers", name)
        chosen = sorted(found.chosen(), key=lambda trial: (trial.steps, trial.test_fvu))
        expected += [[name, *cells(trial, found)] for trial in chosen]
    assert shown == expected and names


def test_the_table_of_the_target_is_that_of_the_recorded_trials() -> None:
    assert rows(TEXT, "at equal steps") == target_rows()


def target_rows() -> list[list[str]]:
    found = {name: read("peers", name) for name in dict.fromkeys(row[0] for row in rows(TEXT, "set"))}
    ratios = [
        (name, steps, report.ratio(DEFAULT, steps), report.ratio(OURS, steps))
        for name, report in found.items()
        for steps in report.setting.lengths
    ]
    return [
        [f"{name}, {steps} steps", *(f"{ratio:.3f} ({'met' if ratio <= CLOSE else 'missed'})" for ratio in pair)]
        for name, steps, *pair in ratios
        if None not in pair
    ]


def cells(trial: Trial, found: QualityReport) -> list[str]:
    version = f" {found.versions[trial.contender]}" if trial.contender in found.versions else ""
    numbers = [f"{trial.learning_rate:.2g}", f"{trial.cpu_s:.1f}", f"{trial.test_fvu:.4f}", f"{trial.dead:.1%}"]
    return [str(trial.steps), trial.contender + version, *numbers]


@pytest.mark.parametrize("name", ["emoji/sae", "emoji/sae_grid", "emoji/sae_places", "emoji/sae_table/topk"])
def test_experiments_with_recorded_numbers_name_their_rate(name: str) -> None:
    assert load_run(name, []).probe.params["learning_rate"] in (1e-3, 3e-3)


def test_the_defaults_of_this_record_are_those_of_the_code() -> None:
    for name in dict.fromkeys(row[0] for row in rows(TEXT, "set")):
        found = read("peers", name)
        default = next(trial for trial in found.trials if trial.contender == DEFAULT)
        assert default.learning_rate == pytest.approx(6e-3 * min(1, (1024 / found.n_latents) ** 0.5))


def test_the_table_of_auxk_is_that_of_the_recorded_trials() -> None:
    found = QualityReport.from_json((RECORDED / "sweep/emoji_pooled_aux.json").read_text("utf-8"))
    trials = [trial for trial in found.trials if trial.contender == OURS]
    expected = [
        [f"{t.params['aux_weight']:g}", f"{t.learning_rate:g}", f"{t.test_fvu:.4f}", f"{t.dead:.1%}"] for t in trials
    ]
    assert rows(TEXT, "AuxK") == expected and {t.steps for t in trials} == {600}


def test_the_ratios_in_the_text_are_those_of_the_recorded_trials() -> None:
    before = QualityReport.from_json((RECORDED / "before.json").read_text("utf-8"))
    found, text = read("peers", "emoji places"), " ".join(TEXT.split())
    ratios = [found.ratio(DEFAULT, 240), found.ratio(DEFAULT, 60), found.ratio(OURS, 60), before.ratio(DEFAULT, 240)]
    above = [100 * (ratio - 1) for ratio in ratios if ratio is not None]
    assert f"its defaults is {above[0]:.1f} % above the best other library at 240 steps" in text
    assert f"at 60 steps it is {above[1]:.0f} % above, and with the best of three rates {above[2]:.0f} %" in text
    pooled = read("peers", "emoji pooled")
    below, short = ((pooled.ratio(DEFAULT, steps) or 0.0) - 1 for steps in (320, 80))
    assert (
        f"it is {-100 * below:.1f} % below the best other library at 320 steps, and {100 * short:.0f} % above at 80"
        in text
    )
    assert f"the defaults were {above[3]:.0f} % above at 240 steps" in text
