"""Texts of the comparison of ways to steer: they state one value and nothing else."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.steering_texts import EditTexts
from diffprobe.shards.scenes.captions import parse
from tests.evaluation.stub_reader import SPEC


def test_texts_state_the_value_and_nothing_else():
    texts = EditTexts.of(SPEC, "texture", "striped", "plain")
    assert len(texts.plain) == len(SPEC.roles)
    for plain, positive, negative in zip(texts.plain, texts.positive, texts.negative, strict=True):
        role = parse(SPEC, plain)
        assert set(role) == {"role"}
        assert parse(SPEC, positive) == {**role, "texture": "striped"}
        assert parse(SPEC, negative) == {**role, "texture": "plain"}
    identity, stated = texts.stated(30)
    assert stated == {1.0: [*texts.positive, *texts.positive[:6]]} and identity != texts.stated(24)[0]
    (edited,) = texts.edited(1, 0.5)
    assert (edited.text, edited.towards, edited.away) == (texts.plain[0], texts.positive[0], texts.negative[0])
    assert [one.text for one in texts.edited(30, 1.0)] == [*texts.plain, *texts.plain[:6]]


@pytest.mark.parametrize("factor", ["role", "side", "build"])
def test_a_factor_that_no_caption_states_by_itself_is_refused(factor):
    one, other = SPEC.names(factor)[:2]
    with pytest.raises(ConfigError, match=rf"'{factor}' by itself.*\n.*texture"):
        EditTexts.of(SPEC, factor, one, other)
