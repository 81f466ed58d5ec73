import pytest
import torch

from diffprobe.generative.embedding_noise import add_embedding_noise


def noised(share, seed=0, captions=("a", "", "b")):
    states = 2 * torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(9))
    return states, add_embedding_noise(
        states, captions, std=share, generator=torch.Generator().manual_seed(seed)
    ) - states


def test_noise_has_the_share_of_the_states_spread_and_leaves_the_empty_caption():
    states, noise = noised(0.3)
    assert float(noise[[0, 2]].std()) == pytest.approx(0.3 * float(states.std()), rel=0.1)
    assert not noise[1].any()


def test_half_of_it_moves_all_tokens_alike():
    _, noise = noised(0.3)
    assert float(noise[0].mean(0).var() / noise[0].var()) == pytest.approx(0.5, abs=0.15)


def test_it_is_the_generators_and_none_without_a_share():
    assert torch.equal(noised(0.3)[1], noised(0.3)[1]) and not torch.equal(noised(0.3)[1], noised(0.3, seed=1)[1])
    assert not noised(0.0)[1].any()
