"""What an audit reads: folders of latents and tables of rates."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.audit_file import FORMAT as AUDIT_FORMAT
from diffprobe.core.errors import ConfigError, DiffprobeError, NonFinite, SchemaError, StoreIncomplete, StoreMismatch
from diffprobe.core.result import RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.audit_inputs import (
    PROMPTS_FILE,
    TENSORS_FILE,
    load_arrays,
    read_latents,
    read_rates,
    write_arrays,
)

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def test_arrays_come_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "s", ["a", "ü\nb"], {"mid@t1": FEATURES, "up@t2": FEATURES * 2})
    found = read_latents(tmp_path / "s", "up@t2")
    assert found.prompts == ("a", "ü\nb") and np.array_equal(found.features, FEATURES * 2)


def test_another_loader_joins_by_its_three_values(tmp_path: Path) -> None:
    found = read_latents(tmp_path, "x", load=lambda store, cell: (FEATURES, [cell, store.name], [{}, {}]))
    assert found.prompts == ("x", tmp_path.name)


def test_folders_that_are_not_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreIncomplete, match="no folder"):
        read_latents(tmp_path / "none", "mid@t1")
    with pytest.raises(StoreIncomplete, match=PROMPTS_FILE):
        load_arrays(tmp_path, "mid@t1")
    write_arrays(tmp_path / "s", ["a", "b"], {"mid@t1": FEATURES})
    with pytest.raises(StoreMismatch, match="mid@t1"):
        load_arrays(tmp_path / "s", "mid@t2")
    (tmp_path / "s" / TENSORS_FILE).write_bytes(b"x" * 100)
    with pytest.raises(SchemaError, match=TENSORS_FILE):
        load_arrays(tmp_path / "s", "mid@t1")
    (tmp_path / "s" / PROMPTS_FILE).write_text(json.dumps({"format": "other", "prompts": []}))
    with pytest.raises(SchemaError, match="other"):
        load_arrays(tmp_path / "s", "mid@t1")
    with pytest.raises(NonFinite):
        write_arrays(tmp_path / "t", ["a", "b"], {"mid@t1": FEATURES * np.float32(np.nan)})


def test_rates_come_from_three_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject,rate,low,high,note\njudge,0.2,0.1,0.3,x\ncook,0.5,0.4,0.6,\n")
    rates = {"cook": {"rate": 0.5, "low": 0.4, "high": 0.6}, "judge": {"rate": 0.2, "low": 0.1, "high": 0.3}}
    (tmp_path / "a.json").write_text(json.dumps({"format": AUDIT_FORMAT, "level": 0.95, "rates": rates}))
    records = [
        MetricRecord(name="rate", value=row["rate"], split="test", n=9, target=name,
                     detail={"interval": [row["low"], row["high"]]})
        for name, row in rates.items()
    ]  # fmt: skip
    result = make_result(run="r", experiment="e", kind="rates", config={}, seeds={}, metrics=records,
                         started_at=StartTime.now())  # fmt: skip
    write_result(result, tmp_path / RESULT_FILE)
    for path in (tmp_path / "a.csv", tmp_path / "a.json", tmp_path / RESULT_FILE, tmp_path):
        found = read_rates(path, ["cook", "judge"])
        assert (
            found.rate.tolist() == [0.5, 0.2] and found.low.tolist() == [0.4, 0.1] and found.high.tolist() == [0.6, 0.3]
        )
    (tmp_path / "b.csv").write_text("subject,rate\ncook,0.5\n")
    assert read_rates(tmp_path / "b.csv", ["cook"]).low is None


@pytest.mark.parametrize(
    ("text", "error", "facts"),
    [
        ("subject,rate\njudge,0.5\n", ConfigError, ["cook"]),
        ("subject,rate\ncook,1.5\n", ConfigError, ["cook", "1.5"]),
        ("subject,rate,low,high\ncook,0.5,0.6,0.7\n", ConfigError, ["cook", "0.6"]),
        ("subject,rate\ncook,much\n", ConfigError, ["line 2", "much"]),
        ("subject,rate\ncook,\n", ConfigError, ["line 2", "cook"]),
        ("subject,rate\ncook,nan\n", ConfigError, ["nan"]),
        ("subject,rate\ncook,0.5\ncook,0.5\n", ConfigError, ["line 3", "cook"]),
        ("name,share\ncook,0.5\n", SchemaError, ["subject", "rate"]),
        ("subject,rate,rate\ncook,0.5,0.5\n", SchemaError, ["rate"]),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, error: type[DiffprobeError], facts: list[str]) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(error) as caught:
        read_rates(tmp_path / "a.csv", ["cook"])
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_a_file_that_is_not_an_audit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SchemaError, match=AUDIT_FORMAT):
        read_rates(tmp_path / "a.json", ["cook"])
    with pytest.raises(FileNotFoundError):
        read_rates(tmp_path / "none.csv", ["cook"])


def test_a_feature_store_of_prompts_is_read_by_its_own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from diffprobe.features import prompt_latents

    (tmp_path / "manifest.json").write_text("{}", "utf-8")
    asked = []

    def read(store: Path, cell: str) -> prompt_latents.PromptLatents:
        asked.append((store, cell))
        return prompt_latents.PromptLatents(torch.from_numpy(FEATURES), ["a", "b"], {"prompt_id": ["a", "b"]})

    monkeypatch.setattr(prompt_latents, "load_prompt_latents", read)
    found = read_latents(tmp_path, "mid@t1")
    assert found.prompts == ("a", "b") and np.array_equal(found.features, FEATURES)
    assert asked == [(tmp_path, "mid@t1")]
