"""Ablation of single latents in a tiny backbone, against one latent and one sample at a time."""

import pytest
import torch

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import BadTimestep, NonFinite
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork, put_features
from diffprobe.scoring.latent_ablation import (
    CONTROLS,
    ablated_errors,
    ablation,
    control_ablation,
    control_direction,
    join_columns,
    read_codes,
)
from tests.backbones.plans import plan_for

T = 500
TAP = "mid_block"
KEYS = ["a", "b", "c", "d", "e"]
N_LATENTS = 12


class Words:
    """Each latent fires where a feature has a part along it that is larger than by chance; the last never does."""

    n_latents = N_LATENTS

    def __init__(self, d_in: int, seed: int = 0) -> None:
        self.d_in, self.scale = d_in, torch.tensor(4.0)
        self.W_dec = torch.randn(N_LATENTS, d_in, generator=torch.Generator().manual_seed(seed))
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @property
    def directions(self) -> torch.Tensor:
        return self.W_dec / 4

    def encode(self, x):
        values = 4 * (x @ self.W_dec.T - x.norm(dim=1, keepdim=True) / 2 / self.d_in**0.5).relu()
        values[:, -1] = 0
        return values, torch.arange(N_LATENTS).expand_as(values)

    def state_dict(self):
        return {"W_dec": self.W_dec}


def open_network(path, pool, rows=None, draws=1):
    plan = plan_for(str(path), taps=[TAP], timesteps=[T], pool=pool, seed=3, draws=draws, keep_draws=draws > 1)
    return InterventionNetwork(plan, device="cpu", rows=rows)


def samples_of(network, order=range(5)):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    order = list(order)
    return HeldOut(network.encode_images(images)[order], [KEYS[i] for i in order], ["red cat" for _ in order])


def measured(path, pool, *, rows=None, draws=1, order=range(5), latents=range(N_LATENTS), controls=CONTROLS):
    network, splice = open_network(path, pool, rows, draws), Splice(pool)
    samples = samples_of(network, order)
    d_in = 32 * (4 if pool == "grid2" else 1)
    words = Words(d_in)
    codes = read_codes(network, samples, T, TAP, splice, words)
    found = ablated_errors(
        network, samples, T, TAP, splice, words, codes, list(latents), controls=controls, seed=7
    )  # fmt: skip
    return network, samples, words, codes, found


def as_table(found, samples):
    return {
        (int(latent), samples.keys[int(sample)]): found.rise[:, i]
        for i, (latent, sample) in enumerate(zip(found.latent, found.sample, strict=True))
    }


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "grid2", "none"])
def test_it_is_one_latent_and_one_sample_at_a_time(tiny_sd, pool) -> None:
    network, samples, words, codes, found = measured(tiny_sd, pool, rows=4)
    table = as_table(found, samples)
    assert 5 < len(table) < N_LATENTS * len(KEYS)
    splice = Splice(pool)
    for row, key in enumerate(KEYS):
        one = HeldOut(samples.latents[row : row + 1], [key], ["red cat"])
        untouched = network.errors(one, T)
        assert float(codes.untouched[row, 0]) == pytest.approx(float(untouched), rel=1e-6)
        for latent in (0, 4, 7, N_LATENTS - 1):
            directions = [words.directions[latent]] + [
                control_direction(words, latent, control, key=key, draw=0, seed=7) for control in CONTROLS
            ]
            for number, direction in enumerate(directions):

                def without(x, latent=latent, direction=direction):
                    values, _ = words.encode(x)
                    return x - values[:, latent, None] * direction

                expected = float(network.errors(one, T, {TAP: put_features(splice, without)}) - untouched)
                if (latent, key) in table:
                    assert float(table[latent, key][number]) == pytest.approx(expected, abs=2e-6)
                else:
                    assert expected == pytest.approx(0, abs=1e-12)  # where it does not fire nothing changes


@pytest.mark.slow
def test_the_change_for_sampling_takes_out_the_same(tiny_sd) -> None:
    network, samples, words, _, found = measured(tiny_sd, "none")
    latent = int(found.latent[0])
    rise = network.errors(samples, T, {TAP: ablation(Splice("none"), words, latent)}) - network.errors(samples, T)
    for (number, key), expected in as_table(found, samples).items():
        if number == latent:
            assert float(rise[KEYS.index(key)]) == pytest.approx(float(expected[0]), abs=2e-6)
    drawn = [control_direction(words, latent, CONTROLS[0], key=key, draw=0, seed=7) for key in KEYS]
    change = control_ablation(Splice("none"), words, latent, torch.stack(drawn))
    rise = network.errors(samples, T, {TAP: change}) - network.errors(samples, T)
    for (number, key), expected in as_table(found, samples).items():
        if number == latent:
            assert float(rise[KEYS.index(key)]) == pytest.approx(float(expected[1]), abs=2e-6)


@pytest.mark.slow
def test_batch_size_order_and_choice_of_latents_do_not_matter(tiny_sd) -> None:
    _, samples, _, _, found = measured(tiny_sd, "none")
    whole = as_table(found, samples)
    _, others, _, _, found = measured(tiny_sd, "none", rows=3, order=[4, 2, 0, 1, 3])
    moved = as_table(found, others)
    assert moved.keys() == whole.keys()
    for key, rise in whole.items():
        torch.testing.assert_close(moved[key], rise, rtol=0, atol=2e-6)
    _, samples, _, _, found = measured(tiny_sd, "none", latents=[2, 6])
    for key, rise in as_table(found, samples).items():
        assert key[0] in (2, 6)
        torch.testing.assert_close(rise, whole[key], rtol=0, atol=2e-6)


@pytest.mark.slow
def test_draws_are_averaged(tiny_sd) -> None:
    network, samples, words, codes, found = measured(tiny_sd, "none", draws=2, controls=())
    assert codes.untouched.shape == (5, 2)
    torch.testing.assert_close(codes.untouched.mean(1), network.errors(samples, T), rtol=1e-5, atol=0)
    latent = int(found.latent[0])
    rise = network.errors(samples, T, {TAP: ablation(Splice("none"), words, latent)}) - network.errors(samples, T)
    for (number, key), expected in as_table(found, samples).items():
        if number == latent:
            assert float(rise[KEYS.index(key)]) == pytest.approx(float(expected[0]), abs=2e-6)


@pytest.mark.slow
def test_only_pairs_in_which_a_latent_fires_are_denoised(tiny_sd, monkeypatch) -> None:
    passes, seen = [], []
    errors_of = InterventionNetwork.errors_of
    monkeypatch.setattr(InterventionNetwork, "errors_of", lambda *args: passes.append(len(args[2])) or errors_of(*args))
    network, samples, words, codes, found = measured(tiny_sd, "none", rows=4, controls=("random_direction",))
    fires = codes.largest(N_LATENTS) > 0
    pairs = int(fires.sum())
    assert sorted(passes) == sorted([4, 1] + 2 * ([4] * (pairs // 4) + ([pairs % 4] if pairs % 4 else [])))
    assert found.rise.shape == (2, pairs) and not fires[:, -1].any() and fires.any(0).sum() > 5
    ablated_errors(
        network, samples, T, TAP, Splice("none"), words, codes, range(N_LATENTS), controls=CONTROLS, tick=seen.append
    )  # fmt: skip
    assert sum(seen) == 3 * pairs
    none = ablated_errors(network, samples, T, TAP, Splice("none"), words, codes, [N_LATENTS - 1])
    assert none.rise.shape == (1, 0)


@pytest.mark.slow
def test_codes_are_those_of_the_features(tiny_sd) -> None:
    _, _, words, codes, _ = measured(tiny_sd, "none", rows=2)
    kept = {}
    network = open_network(tiny_sd, "none")
    samples = samples_of(network)

    def keep(x):
        kept["x"] = Splice("none").read(x)

    network.errors(samples, T, {TAP: keep})
    values, _ = words.encode(kept["x"])
    dense = torch.zeros(5, codes.n_places, N_LATENTS)
    dense[codes.sample, codes.place, codes.latent] = codes.value
    torch.testing.assert_close(dense, values.view_as(dense), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codes.largest(N_LATENTS), dense.amax(1))
    for latent in range(N_LATENTS):
        assert (codes.latent[codes.of(latent)] == latent).all()
        assert codes.of(latent).stop - codes.of(latent).start == int((dense[..., latent] > 0).sum())


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_has_the_norm_of_the_latent_and_another_direction_for_each_sample(control) -> None:
    words = Words(8)
    drawn = [control_direction(words, 3, control, key=key, draw=0, seed=0) for key in map(str, range(40))]
    own = words.directions[3]
    assert all(one.norm().item() == pytest.approx(own.norm().item(), rel=1e-5) for one in drawn)
    assert not any(torch.allclose(one.abs(), own.abs()) for one in drawn)
    assert len({tuple(one.tolist()) for one in drawn}) > 15
    again = control_direction(words, 3, control, key="5", draw=0, seed=0)
    assert torch.equal(again, drawn[5]) and not torch.equal(
        again, control_direction(words, 3, control, key="5", draw=1, seed=0)
    )


def test_codes_of_other_widths_are_joined() -> None:
    joined = join_columns([torch.ones(1, 2), torch.ones(2, 3)])
    assert joined.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_codes_that_are_not_finite_and_wrong_timesteps_are_refused(tiny_sd) -> None:
    network = open_network(tiny_sd, "mean")
    samples, words = samples_of(network), Words(32)
    with pytest.raises(BadTimestep, match="t=1000"):
        read_codes(network, samples, 1000, TAP, Splice("mean"), words)
    broken = Words(32)
    broken.encode = lambda x: (x[:, :1] / 0, torch.zeros(len(x), 1, dtype=torch.int64))
    with pytest.raises(NonFinite, match="'mid_block' at t=500"):
        read_codes(network, samples, T, TAP, Splice("mean"), broken)
