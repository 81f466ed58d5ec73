"""The page about directions from prompts: its commands and its table of settings are those of the code."""

import dataclasses
import re
import shlex
from pathlib import Path

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.parse import parse
from diffprobe.core.result import read_result
from diffprobe.evaluation.prompt_directions import PromptDirectionConfig
from diffprobe.evaluation.self_discovered import SelfDiscoveredConfig
from diffprobe.shards.prompt_table import read_prompts
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/directions.md").read_text("utf-8")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe directions (.+)$", TEXT, re.MULTILINE)
    assert commands
    for command in commands:
        _, *words = shlex.split(command)
        discovered = "--self-discovered" in words
        settings = settings_tree([word for word in words if not word.startswith("--")])
        parse(SelfDiscoveredConfig if discovered else PromptDirectionConfig, settings)


def test_every_setting_is_there_with_its_default() -> None:
    table = TEXT.partition("| setting |")[2].partition("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    assert list(rows) == [field.name for field in dataclasses.fields(PromptDirectionConfig)]
    for field in dataclasses.fields(PromptDirectionConfig):
        if isinstance(field.default, int | float):
            assert float(rows[field.name]) == field.default, field.name


def test_its_file_of_prompts_is_one_that_pairs(tmp_path: Path) -> None:
    (file,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "prompts.csv").write_text(file)
    found = [prompt.attributes for prompt in read_prompts(tmp_path / "prompts.csv")]
    assert {(one["context"], one["texture"]) for one in found} == {
        (context, value) for context in ("cook", "banker") for value in ("plain", "striped")
    }


def test_the_table_of_emoji_is_that_of_the_recorded_results() -> None:
    table = TEXT.partition("| attribute | drawings, families |")[2].partition("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    cells = {"generated pixels": "pixels@t0", "generated VAE latents": "latents@t0"}
    assert [row[0] for row in rows] == ["style", "gender", "skin_tone"]
    of_captions = []
    for name, counts, *shown in rows:
        metrics = read_result(ROOT / f"docs/results/emoji-sd/prompt-directions/{name}.json").metrics
        of = {(record.cell or "").partition(":")[0]: record for record in metrics if record.name == "auroc"}
        expected = []
        for title in header:
            record = of[cells.get(title, f"{title}@t200")]
            low, high = record.detail["interval"]
            expected.append(f"{record.value:.2f} [{low:.2f}, {high:.2f}]")
            assert counts == f"{record.n}, {record.detail['groups']}"
            assert record.detail["p_random_direction"] <= 0.03
        assert shown == expected
        of_captions.append(f"{of['latents@t0'].controls['text_encoder']:.2f}")
        assert all(of["latents@t0"].value >= record.value for record in of.values())
        if name == "style":
            of_features = [of[f"{tap}@t200"].detail["differences"]["vae_latents"] for tap in header if "block" in tap]
            assert max(high for _, _, high in of_features) < 0
            assert [round(-min(one[0] for one in of_features), 2), round(-max(one[0] for one in of_features), 2)] == [
                0.22, 0.13,
            ]  # fmt: skip
    assert f"with\n{of_captions[0]}, {of_captions[1]} and {of_captions[2]}, since they name" in TEXT
