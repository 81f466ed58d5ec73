"""Matched captions differ in one attribute and in nothing else that attributes or captions state."""

import pytest

from diffprobe.probes.score.matched_candidates import by_count, exchange, matched_candidates, written_candidates

SAMPLES = [
    ("noto emoji, man running, dark skin tone", {"style": "noto", "gender": "man", "tone": "dark"}),
    ("twemoji emoji, man running, dark skin tone", {"style": "twemoji", "gender": "man", "tone": "dark"}),
    ("noto emoji, woman running, dark skin tone", {"style": "noto", "gender": "woman", "tone": "dark"}),
    ("noto emoji, man running, light skin tone", {"style": "noto", "gender": "man", "tone": "light"}),
    ("noto emoji, man running, medium-dark skin tone", {"style": "noto", "gender": "man", "tone": "medium-dark"}),
    ("noto emoji, man running", {"style": "noto", "gender": "man"}),
    ("twemoji emoji, man running", {"style": "twemoji", "gender": "man"}),
    ("noto emoji, person running", {"style": "noto"}),
]
NAMES = ("style", "gender", "tone")


def matched(name, samples=SAMPLES, families=None, equal=NAMES):
    captions, attributes = zip(*samples, strict=True)
    return matched_candidates(captions, attributes, families or ["run"] * len(samples), name=name, equal=equal)


def test_candidates_differ_in_one_attribute():
    assert matched("style") == [[0, 1], [1, 0], [], [], [], [5, 6], [6, 5], []]
    assert matched("gender") == [[0, 2], [], [2, 0], [], [], [], [], []]
    assert matched("tone") == [[0, 3, 4], [], [], [3, 0, 4], [4, 0, 3], [], [], []]  # without a tone there is no choice


def test_what_only_the_caption_states_is_equal_too():
    right = [(f"{caption}, facing right", values) for caption, values in SAMPLES]
    assert matched("style", SAMPLES + right)[:2] == [[0, 1], [1, 0]]
    assert matched("style", SAMPLES + right)[8:10] == [[8, 9], [9, 8]]
    two_tones = [
        ("noto emoji, handshake, dark, light", {"style": "noto"}),
        ("twemoji emoji, handshake", {"style": "twemoji"}),
    ]
    assert matched("style", two_tones) == [[], []]


def test_another_family_does_not_match_and_neither_does_another_attribute_that_captions_do_not_state():
    assert matched("style", families=[str(i) for i in range(8)]) == [[]] * 8
    hidden = [("red cat", {"colour": "red", "room": "hall"}), ("blue cat", {"colour": "blue", "room": "yard"})]
    assert matched("colour", hidden, equal=("colour", "room")) == [[], []]
    assert matched("colour", hidden, equal=("colour",)) == [[0, 1], [1, 0]]


def test_samples_with_one_caption_are_one_candidate():
    assert matched("style", [*SAMPLES, SAMPLES[1]])[0] == [0, 1]
    assert matched("style", [*SAMPLES, SAMPLES[1]])[8] == [8, 0]


def test_a_value_that_the_caption_does_not_state_has_no_matched_caption():
    assert matched("style", [("a cat", {"style": "noto"}), ("a cat", {"style": "twemoji"})]) == [[], []]


@pytest.mark.parametrize(
    ("caption", "value", "other", "found"),
    [
        ("a man, a woman", "man", "boy", "a boy, a woman"),
        ("medium-dark, dark", "dark", "light", "medium-dark, light"),
        ("a+b a", "a+b", r"\1", r"\1 a"),
        ("nothing", "man", "woman", "nothing"),
    ],
)
def test_whole_words_are_exchanged(caption, value, other, found):
    assert exchange(caption, value, other) == found


def test_samples_are_grouped_by_the_number_of_their_candidates():
    found = by_count([[], [1, 0], [2, 3, 4], [3, 1], []])
    assert [(rows.tolist(), table.tolist()) for rows, table in found] == [
        ([1, 3], [[1, 0], [3, 1]]),
        ([2], [[2, 3, 4]]),
    ]
    assert by_count([[], []]) == []


def test_written_candidates_state_the_own_value_first_and_differ_in_the_phrase_alone():
    captions = ["a cook, striped clothes, standing on the left, a ball to the left", "a judge, red clothes"]
    sides = [{"side": "left"}, {"side": "right"}]
    found = written_candidates(captions, sides, ["a", "b"], name="side", phrase="to the {}", most=10, seed=0)
    assert found == [[captions[0], "a cook, striped clothes, standing on the left, a ball to the right"], []]


def test_the_draw_of_written_candidates_depends_on_seed_and_key_alone():
    values = [{"role": f"role{i}"} for i in range(12)]
    captions, keys = [f"a {sample['role']}" for sample in values], [f"k{i}" for i in range(12)]

    def drawn(rows, seed=0):
        every = written_candidates(
            [captions[row] for row in rows], [values[row] for row in rows], [keys[row] for row in rows],
            name="role", phrase="a {}", most=4, seed=seed,
        )  # fmt: skip
        return dict(zip([keys[row] for row in rows], every, strict=True))

    forward, backward = drawn(range(12)), drawn(range(11, -1, -1))
    assert forward == backward != drawn(range(12), seed=1)
    for key, candidates in forward.items():
        assert len(set(candidates)) == 4 and candidates[0] == captions[keys.index(key)]
