"""The cost of an audit, and its prompts as tokens, before anything is run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffprobe.analysis.audit.prompts import all_prompts
from diffprobe.analysis.audit.spec import Subject
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.audit_cost import check_tokens, cost_lines, cost_of, require_tokens
from diffprobe.evaluation.audit_settings import Audit
from diffprobe.evaluation.audit_steering_settings import AuditSteering
from tests.evaluation.audit_world import TEXTURE, settings


class Words:
    """A tokenizer of whole words, between a start and an end; it drops what is not a letter."""

    def __call__(self, texts: list[str], **options: Any) -> Any:
        lists = [[0, *(1 for word in text.split() if any(c.isalpha() for c in word)), 2] for text in texts]
        return type("Tokens", (), {"input_ids": lists})()


@pytest.mark.slow
def test_the_passes_of_the_latents_follow_from_the_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    file = "kind: extract_prompts\nbackbone: {path: BACKBONE}\nprompts: p.txt\n"
    file += "features: {taps: [mid_block], reread: [9]}\n"
    (tmp_path / "experiments" / "here.yaml").write_text(
        file.replace("BACKBONE", "emoji-sd") + "sampling: {steps: 5, guidance: 2.0, seeds: 3}\n"
    )
    (tmp_path / "experiments" / "elsewhere.yaml").write_text(
        file.replace("BACKBONE", "nobody/nothing") + "sampling: {steps: 5, seeds: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = settings(n_templates=2, extraction="here")
    n = len(all_prompts(config))
    cost = cost_of(config)
    assert cost.is_planned and cost.extraction == n * 3 * (5 * 2 + 1) and cost.steering == 0
    other = cost_of(replace(config, extraction="elsewhere"))
    assert not other.is_planned and other.extraction == n * 3 * (5 + 1)
    assert check_tokens(replace(config, extraction="elsewhere")) == [
        "the prompts were not checked by a tokenizer: the checkpoint's files are not here"
    ]
    steered = replace(config, steering=AuditSteering(generator="emoji-sd", labelled="emoji", n_subjects=2, seeds=1))
    cost = cost_of(steered)
    assert cost.steering == 2 * (1 + 6 * 4) * 20
    lines = "\n".join(cost_lines(steered, cost, speed=10.0))
    total = n * 33 + 1000
    assert f"{total:,} denoiser passes, {total / 36000:,.1f} hours at 10 passes/s" in lines
    assert "--speed" in "\n".join(cost_lines(steered, cost, speed=None))


def test_without_an_extraction_only_prompts_are_counted() -> None:
    cost = cost_of(settings(n_templates=2))
    assert cost.extraction is None and "not known" in "\n".join(cost_lines(settings(), cost, speed=None))
    assert check_tokens(settings()) == []


def test_subjects_without_a_token_are_named() -> None:
    config = settings(n_templates=2, subjects=("cook", "...", Subject(name="pilot", alone="?!")))
    with pytest.raises(ConfigError, match="2 of 3 subjects have no token") as caught:
        require_tokens(config, Words(), 77)
    assert "'...'" in str(caught.value) and "'pilot'" in str(caught.value)
    require_tokens(settings(n_templates=2, subjects=("cook", "judge")), Words(), 77)


def test_subjects_whose_prompts_are_cut_are_named() -> None:
    long = Subject(name="inspector of the lamps of the old town")
    config = settings(n_templates=1, subjects=("cook", long))  # "view 0 of a cook": start, 4 words, end
    with pytest.raises(ConfigError, match="are cut by the tokenizer, which reads 7 tokens") as caught:
        require_tokens(config, Words(), 7)
    shown = str(caught.value)
    assert f"subjects: {long.name}" in shown and "cook" not in shown.split("subjects:")[1].splitlines()[0]
    with pytest.raises(ConfigError, match="only with the words of an axis"):
        require_tokens(settings(n_templates=1, subjects=("cook", "judge"), descriptors=()), Words(), 6)
    require_tokens(config, Words(), 7, allow_truncated=True)


@pytest.mark.slow
def test_shipped_audits_fit_their_tokenizers() -> None:
    config: Audit = load("audits/emoji", [], kinds=("audit",))
    assert check_tokens(config) == [
        "every subject has tokens, and no prompt has more than the 32 that the text encoder reads"
    ]
    long = replace(config, subjects=("cook", "a " + "very " * 40 + "old cook"), neutral=(), axes=(TEXTURE,))
    with pytest.raises(ConfigError, match="very very"):
        check_tokens(long)
