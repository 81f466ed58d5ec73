"""Files of prompts: texts, ids, attributes and splits; every fault is named with its line."""

import json
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.prompt_table import attribute_values, prompt_id, read_prompts


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.txt", "\ufeffa nurse\r\n\n  a café, small \n"))
    assert [prompt.text for prompt in prompts] == ["a nurse", "a café, small"]
    assert [prompt.id for prompt in prompts] == [prompt_id("a nurse"), prompt_id("a café, small")]
    assert {prompt.split for prompt in prompts} == {"train"} and not prompts[0].attributes


def test_csv_and_jsonl_give_equal_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a nurse, smiling", "id": "n", "split": "test", "subject": "nurse", "size": "2"},
        {"prompt": "a cook", "id": "c", "split": "", "subject": "", "size": "3"},
    ]
    csv = 'prompt,id,split,subject,size\n"a nurse, smiling",n,test,nurse,2\na cook,c,,,3\n'
    lines = [json.dumps({**row, "size": int(row["size"])}) for row in rows]
    found = read_prompts(write(tmp_path, "p.csv", csv))
    assert found == read_prompts(write(tmp_path, "p.jsonl", "\n".join(lines)))
    assert [prompt.split for prompt in found] == ["test", "train"]
    assert [prompt.attributes for prompt in found] == [{"subject": "nurse", "size": "2"}, {"size": "3"}]


def test_ids_do_not_depend_on_the_order(tmp_path: Path) -> None:
    one = read_prompts(write(tmp_path, "1.txt", "a\nb\nc"))
    other = read_prompts(write(tmp_path, "2.txt", "c\na\nb"))
    assert {p.text: p.id for p in one} == {p.text: p.id for p in other}


def test_attribute_values_have_prompts_and_seeds(tmp_path: Path) -> None:
    found = attribute_values(read_prompts(write(tmp_path, "p.csv", "prompt,id,tone\na,y,dark\nb,x,\n")), 3)
    assert found == {"tone": ["dark"], "prompt_id": ["x", "y"], "seed": ["0", "1", "2"]}


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("p.txt", "\n \n", ["no prompt"]),
        ("p.txt", "a\nb\na\n", ["line 3", "line 1", "1 duplicate prompt"]),
        ("p.csv", "prompt,id\na,x\nb,x\n", ["1 duplicate id", "'x'"]),
        ("p.csv", "prompt,id\na,x\na,y\n", ["1 duplicate prompt"]),
        ("p.csv", "prompt,id\na,\n", ["line 2", "no id"]),
        ("p.csv", "prompt,tone\n,dark\n", ["line 2", "empty"]),
        ("p.csv", "text,tone\na,dark\n", ["'prompt'", "text, tone"]),
        ("p.csv", "prompt,caption\na,b\n", ["caption"]),
        ("p.csv", "prompt,seed\na,1\n", ["seed"]),
        ("p.csv", "prompt\n", ["no row"]),
        ("p.jsonl", '{"prompt": ["a"]}', ["line 1", "list"]),
        ("p.jsonl", "{", ["not JSON"]),
        ("p.yaml", "a", [".csv", "p.yaml"]),
    ],
)
def test_a_fault_is_named(tmp_path: Path, name: str, content: str, facts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read_prompts(write(tmp_path, name, content))
    assert all(fact in str(error.value) for fact in facts), str(error.value)


def test_a_missing_file_and_other_encodings_are_named(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.csv"):
        with pytest.raises(ConfigError, match="not found"):
            read_prompts(tmp_path / name)
    (tmp_path / "l.txt").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_prompts(tmp_path / "l.txt")
