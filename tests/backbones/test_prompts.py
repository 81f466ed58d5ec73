import pytest

from diffprobe.backbones.prompts import Branch, SampleMetadata, condition_inputs, make_branches
from diffprobe.core.errors import ConfigError

TEXTS = SampleMetadata(
    keys=["a", "b"],
    captions=["red cat", "blue dog"],
    labels=[3, 0],
    columns={"class_name": ["cat", "dog"], "skin_tone": ["dark", None]},
)


@pytest.mark.parametrize(
    ("condition", "prompt", "conditioning"),
    [
        ("empty", None, ["", ""]),
        ("caption", None, ["red cat", "blue dog"]),
        ("prompt", "a {thing}", ["a {thing}", "a {thing}"]),
        (
            "template",
            "a photo of a {class_name}, {caption}",
            ["a photo of a cat, red cat", "a photo of a dog, blue dog"],
        ),
        ("label", None, [3, 0]),
    ],
)
def test_each_sample_has_its_input(condition: str, prompt: str | None, conditioning: list) -> None:
    (branch,) = make_branches(condition, prompt, unconditional=False, negative=None)
    assert condition_inputs(branch, TEXTS) == conditioning
    assert branch.is_fixed == (condition in ("empty", "prompt"))


def test_guidance_reads_a_second_branch() -> None:
    assert make_branches("caption", None, unconditional=True, negative=None) == [Branch("caption"), Branch("empty")]
    second = make_branches("caption", None, unconditional=True, negative="blurry")[1]
    assert condition_inputs(second, TEXTS) == ["blurry", "blurry"] and second.condition == "negative"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "prompt", "prompt": None}, "needs a prompt"),
        ({"condition": "caption", "prompt": "x"}, "take one"),
        ({"condition": "empty", "prompt": None, "unconditional": True}, "condition=empty itself"),
        ({"condition": "caption", "prompt": None, "negative": "x"}, "unconditional branch"),
        ({"condition": "template", "prompt": "no column"}, "names no column"),
        ({"condition": "template", "prompt": "a {"}, "cannot be read"),
        ({"condition": "template", "prompt": "a {x.y}"}, "names no column"),
    ],
)
def test_rules_that_do_not_go_together_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_branches(**{"unconditional": False, "negative": None, **settings})


@pytest.mark.parametrize(
    ("condition", "prompt", "columns", "given"),
    [
        ("caption", None, ("caption",), ["a cat", "", ""]),
        ("label", None, ("label",), [3, 0, ""]),
        ("template", "{skin_tone} {class_name}", ("skin_tone", "class_name"), ["dark cat", "", ""]),
    ],
)
def test_a_sample_that_lacks_something_may_get_the_empty_prompt(
    condition: str, prompt: str | None, columns: tuple[str, ...], given: list
) -> None:
    texts = SampleMetadata(
        keys=["a", "b", "c"],
        captions=["a cat", None, None],
        labels=[3, 0, -1],
        columns={"class_name": ["cat", "dog", None], "skin_tone": ["dark", None, None]},
    )
    (branch,) = make_branches(condition, prompt, unconditional=False, negative=None, missing="empty")
    assert branch.columns == columns
    assert condition_inputs(branch, texts) == given
    with pytest.raises(ConfigError, match="samples have no"):
        condition_inputs(Branch(condition, prompt), texts)


def test_what_a_sample_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"1 of 2 samples have no skin_tone(.|\n)*first: b"):
        condition_inputs(Branch("template", "{skin_tone}"), TEXTS)
    with pytest.raises(ConfigError, match=r"'clas_name'(.|\n)*nearest: class_name"):
        condition_inputs(Branch("template", "{clas_name}"), TEXTS)
    with pytest.raises(ConfigError, match="1 of 1 samples have no label"):
        condition_inputs(Branch("label"), SampleMetadata(keys=["a"], labels=[-1]))
    with pytest.raises(ConfigError, match="needs a caption for each of 1 images; got none"):
        condition_inputs(Branch("caption"), SampleMetadata(keys=["a"]))
