import math

import pytest
import torch

from diffprobe.analysis.label_free import cknna, high_frequency_share, rank_me
from diffprobe.core.errors import ConfigError, NonFinite


def features(n=24, d=7, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rank_me_is_the_entropy_of_the_singular_values():
    x = features()
    values = [math.sqrt(max(v, 0.0)) for v in torch.linalg.eigvalsh(x.T @ x).tolist()]
    shares = [v / sum(values) + 1e-7 for v in values]
    assert rank_me(x) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_rank_me_of_known_ranks():
    assert rank_me(torch.eye(5)) == pytest.approx(5, rel=1e-5)
    assert rank_me(torch.outer(torch.arange(1.0, 9.0), torch.ones(4))) == pytest.approx(1, abs=1e-4)
    x = features()
    rotation = torch.linalg.qr(features(7, 7, seed=1)).Q
    assert rank_me(3 * x[torch.randperm(24)] @ rotation) == pytest.approx(rank_me(x), rel=1e-8)


def plain_cknna(x, y, k):
    """By loops over pairs, from the definition."""
    n, kernels, near = len(x), [], []
    for part in (x, y):
        unit = part / part.norm(dim=1, keepdim=True)
        kernel = [[float(unit[i] @ unit[j]) for j in range(n)] for i in range(n)]
        kernels.append(kernel)
        near.append(
            [
                sorted((j for j in range(n) if j != i), key=lambda j, row=row: -row[j])[:k]
                for i, row in enumerate(kernel)
            ]
        )

    def align(a, b):
        one = [[kernels[a][i][j] if j in near[a][i] and j in near[b][i] else 0.0 for j in range(n)] for i in range(n)]
        two = [[kernels[b][i][j] if j in near[a][i] and j in near[b][i] else 0.0 for j in range(n)] for i in range(n)]
        pairs = sum(one[i][j] * two[j][i] for i in range(n) for j in range(n))
        sums = sum(map(sum, one)) * sum(map(sum, two)) / ((n - 1) * (n - 2))
        chain = sum(one[i][j] * two[j][m] for i in range(n) for j in range(n) for m in range(n)) * 2 / (n - 2)
        return (pairs + sums - chain) / (n * (n - 3))

    return align(0, 1) / math.sqrt(align(0, 0) * align(1, 1))


@pytest.mark.parametrize("k", [2, 5])
def test_cknna_is_its_definition(k):
    x, noise = features(15), features(15, seed=2)
    y = x @ features(7, 4, seed=1) + 0.5 * noise[:, :4]
    assert cknna(x, y, k=k) == pytest.approx(plain_cknna(x, y, k), rel=1e-6)


def test_cknna_of_the_same_space_is_one_whatever_its_axes_and_order():
    x, y = features(), features(seed=1)
    rotation = torch.linalg.qr(features(7, 7, seed=3)).Q
    assert cknna(x, 5 * x @ rotation) == pytest.approx(1, rel=1e-6)
    order = torch.randperm(24)
    assert cknna(x[order], y[order]) == pytest.approx(cknna(x, y), rel=1e-6)


def test_unrelated_spaces_align_less_than_related_ones():
    x = features(200)
    related = x + 0.3 * features(200, seed=1)
    assert cknna(x, related) > 0.5 > 0.25 > abs(cknna(x, features(200, seed=2)))


def test_features_that_cannot_be_scored():
    x = features()
    with pytest.raises(ConfigError, match="k=1"):
        cknna(x, x, k=1)
    with pytest.raises(ConfigError, match="24 and 23"):
        cknna(x, x[1:])
    with pytest.raises(ConfigError, match=r"\(24, 7\).*at least 31"):
        cknna(x, x, k=30)
    x[3, 2] = torch.nan
    with pytest.raises(NonFinite, match="1 of 24"):
        rank_me(x)


def waves(*frequencies, side=8):
    """Return maps that are sums of cosines along both axes, of equal amplitude."""
    place = torch.arange(side) * 2 * math.pi / side
    return sum(
        torch.cos(f * place)[None, None, None, :] + torch.cos(f * place)[None, None, :, None] for f in frequencies
    )


def test_the_share_of_high_frequencies_is_that_of_planted_waves():
    assert high_frequency_share(waves(1) + 9) == pytest.approx(0, abs=1e-12)  # the mean of a channel has no share
    assert high_frequency_share(waves(3)) == pytest.approx(1)
    assert high_frequency_share(waves(1, 3)) == pytest.approx(0.5)
    assert high_frequency_share(waves(1, 3), cutoff=0.2) == pytest.approx(1)
    assert high_frequency_share(waves(2)) == pytest.approx(0, abs=1e-12)  # at the cutoff itself
    mixed = torch.cat([waves(1), 100 * waves(3)])
    assert high_frequency_share(mixed) == pytest.approx(0.5)  # each sample counts alike
    noise = features(6, 3 * 64).view(6, 3, 8, 8)
    assert high_frequency_share(noise[[3, 1, 0, 2, 5, 4]]) == pytest.approx(high_frequency_share(noise))
    assert high_frequency_share(noise.transpose(2, 3)) == pytest.approx(high_frequency_share(noise))


def test_maps_without_frequencies_are_refused():
    with pytest.raises(ConfigError, match="cutoff=1"):
        high_frequency_share(waves(1), cutoff=1.0)
    with pytest.raises(ConfigError, match=r"\(1, 1, 8, 1\)"):
        high_frequency_share(waves(1)[..., :1])
    with pytest.raises(ConfigError, match="1 of 2 samples are constant"):
        high_frequency_share(torch.cat([waves(1), torch.ones(1, 1, 8, 8)]))
