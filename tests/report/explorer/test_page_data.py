"""What the pages hold: records become lists of the stated order, and records that contradict each other are refused."""

import base64
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.report.explorer.page_data import (
    columns_data,
    facts_data,
    image_data,
    latent_data,
    matches_data,
    texts_data,
)
from diffprobe.report.explorer.records import (
    ActivationMap,
    ActiveLatent,
    Bar,
    Bars,
    Column,
    ImagePage,
    LatentMatch,
    Neighbour,
    TextColumn,
    TopImage,
)
from diffprobe.report.explorer.script_file import to_script
from tests.report.explorer.example import MAP, facts, page

FACTS = facts(8, 5)
PAGE = page(1, 8, 5)
IMAGE = ImagePage(key="k", caption="c", label="", attributes=[("a", "b")], latents=[], thumbnail=None)


def test_a_page_of_a_latent() -> None:
    assert latent_data(PAGE, FACTS) == {
        "names": [["night 1", 2.5, 0.9, 1e-05, 1], ["failed", 0.5, None, None, 0]],
        "top": [[1, 3, 2, 3, "ADNmmcz/"], [2, 2, 2, 3, "ADNmmcz/"]],
        "histogram": [5, 0, 3],
        "histogramEnd": 3,
        "groups": [{"group": "class", "bars": [["a", 4, 1, 0.25]]}],
        "curve": [[25, 0.1, 1], [200, 0.1, 1]],
        "neighbours": [[2, -0.5, ""]],
        "recurrence": [[3, 0.8, "seed 1"]],
    }
    assert base64.b64decode("ADNmmcz/") == MAP.values


def test_numbers_of_numpy_are_taken() -> None:
    top = TopImage(image=np.int64(1), activation=np.float32(0.5))  # type: ignore[arg-type]
    found = latent_data(replace(PAGE, top=[top], histogram=np.array([1, 2])), FACTS)  # type: ignore[arg-type]
    assert json.loads(to_script(found["top"])) == [[1, 0.5]] and json.loads(to_script(found["histogram"])) == [1, 2]
    column = Column(key="x", title="X", help="", values=np.array([1.0, 2.0], dtype=np.float32))  # type: ignore[arg-type]
    assert columns_data([column], 2) == columns_data([replace(column, values=[1.0, 2.0])], 2)


def test_texts_are_listed_once_and_sorted() -> None:
    text = TextColumn(key="about", title="is about", help="H", values=["b", "", "a", "b"], beside="x")
    (found,) = texts_data([text], 4)
    assert found["values"] == ["a", "b"] and found["beside"] == "x"
    assert np.frombuffer(base64.b64decode(found["numbers"]), dtype="<i4").tolist() == [1, -1, 0, 1]
    with pytest.raises(ConfigError, match="4 texts for 5"):
        texts_data([text], 5)
    with pytest.raises(ConfigError, match="'about'"):
        columns_data([Column(key="about", title="", help="", values=[0.0] * 4)], 4, [text])


def test_a_page_of_an_image() -> None:
    active = [ActiveLatent(latent=7, activation=1.23456), ActiveLatent(latent=0, activation=1, map=MAP)]
    found = image_data(replace(IMAGE, latents=active), FACTS)
    assert found["latents"] == [[7, 1.235], [0, 1, 2, 3, "ADNmmcz/"]]
    assert (found["picture"], found["attributes"]) == (False, [["a", "b"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": [TopImage(image=5, activation=1.0)]}, r"latent 1, top image 0: image 5 .*\n.*0 to 4"),
        ({"top": [TopImage(image=-1, activation=1.0)]}, "image -1"),
        (
            {"top": [TopImage(image=0, activation=1.0, map=ActivationMap(height=2, width=2, values=b"abc"))]},
            "2 x 2 places has 3",
        ),
        (
            {"top": [TopImage(image=0, activation=1.0, map=ActivationMap(height=0, width=2, values=b""))]},
            "0 x 2 places",
        ),
        ({"neighbours": [Neighbour(latent=8, cosine=0.1)]}, "neighbour 8"),
        (
            {"groups": [Bars(group="g", bars=[Bar(value="v", n_images=2, n_active=3, mean_activation=0.0)])]},
            "latent 1, g 'v': active on 3 of 2",
        ),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latent_data(replace(PAGE, **change), FACTS)  # type: ignore[arg-type]


def test_a_number_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFinite, match="latent 1, top image 0: activation"):
        latent_data(replace(PAGE, top=[TopImage(image=0, activation=math.nan)]), FACTS)
    with pytest.raises(NonFinite, match="image 'k', latent 2"):
        image_data(replace(IMAGE, latents=[ActiveLatent(latent=2, activation=math.inf)]), FACTS)


def test_an_image_with_an_unknown_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image 'k': latent 8"):
        image_data(replace(IMAGE, latents=[ActiveLatent(latent=8, activation=1.0)]), FACTS)


def test_a_latent_of_another_seed_may_have_any_number() -> None:
    found = latent_data(replace(PAGE, recurrence=[Neighbour(latent=99, cosine=0.5, run="seed 2")]), FACTS)
    assert found["recurrence"] == [[99, 0.5, "seed 2"]]


def test_columns_are_validated() -> None:
    column = Column(key="x", title="X", help="", values=[1.0, None])
    assert columns_data([column], 2)
    with pytest.raises(ConfigError, match=r"column 'x'.*2 values for 3"):
        columns_data([column], 3)
    with pytest.raises(ConfigError, match="key 'x'"):
        columns_data([column, column], 2)
    with pytest.raises(ConfigError, match=r"column 'x'.*latent 0 is 1\.5"):
        columns_data([replace(column, kind="p", values=[1.5, None])], 2)
    with pytest.raises(NonFinite, match="control 'random'"):
        columns_data([replace(column, controls=[("random", math.nan)])], 2)


def test_a_run_has_latents() -> None:
    with pytest.raises(ConfigError, match="0 latents"):
        facts_data(replace(FACTS, n_latents=0))


def test_matches_are_validated() -> None:
    match = LatentMatch(latent=0, other=2, similarity=0.98765)
    assert matches_data([match], 2, 3) == [[0, 2, 0.9877]]
    for wrong, message in [
        ([replace(match, latent=2)], "latent 2 is matched with 2"),
        ([replace(match, other=3)], "matched with 3"),
        ([match, match], "latent 0 is matched twice"),
        ([replace(match, similarity=1.5)], r"similarity 1\.5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            matches_data(wrong, 2, 3)
    with pytest.raises(NonFinite, match="0 and 2"):
        matches_data([replace(match, similarity=math.nan)], 2, 3)
