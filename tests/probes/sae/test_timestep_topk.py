import pytest
import torch

from diffprobe.core.errors import BadTimestep, ConfigError, SchemaError, WeightsMismatch
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.base import KIND, SCHEMA_VERSION
from diffprobe.probes.sae.convert import fold
from diffprobe.probes.sae.timestep_topk import Config, make, sinusoids
from diffprobe.probes.sae.topk import Config as PlainConfig
from diffprobe.probes.sae.topk import make as make_plain
from diffprobe.probes.serialization import save_probe

TIMESTEPS = (10, 200, 700)
BASE = {"k": 4, "n_latents": 48, "k_aux": 6}


@pytest.fixture
def rows():
    """Rows of 12 features, a different mean and scale at each timestep, and the timestep of each row."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor(TIMESTEPS)[torch.randint(3, (90,), generator=generator)]
    x = torch.randn(90, 12, generator=generator) * (1 + timesteps[:, None] / 100) + 20 - timesteps[:, None] / 50
    return x, timesteps


def fresh(rows, **settings):
    x, timesteps = rows
    sae = make(Config(**BASE | settings), 12, seed=0, timesteps=(700, 10, 200))
    parts = [x[timesteps == t].double() for t in TIMESTEPS]
    sae.standardise(torch.stack([part.mean(0) for part in parts]),
                    torch.stack([part.var(0, unbiased=False) for part in parts]))  # fmt: skip
    sae.initialise(x.double().mean(0), x.double().var(0, unbiased=False))
    if sae.config.embedding:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # as after some training
            for part in (sae.encoder_embedding, sae.decoder_embedding):
                part.copy_(0.5 * torch.randn(part.shape, generator=generator))
    return sae


def reference(sae, x, timesteps, dead=()):
    """Return reconstruction, fvu and AuxK by the formulas of the docstring, row by row and dense."""
    x_hat, error, residuals, guesses = [], 0.0, [], []
    for row, timestep in zip(x, timesteps.tolist(), strict=True):
        i = sae.timesteps.index(timestep)
        e = sinusoids(sae.timesteps, sae.config.embedding)[i]
        in_decoder, in_encoder = sae.decoder_embedding @ e, sae.encoder_embedding @ e
        z = sae.scales[i] * (row - sae.means[i]) - in_decoder
        h = sae.W_enc @ (z - sae.b_pre) + sae.b_enc + in_encoder
        code = torch.zeros(sae.n_latents).scatter(0, h.topk(sae.k).indices, h.topk(sae.k).values.relu())
        z_hat = code @ sae.W_dec + sae.b_pre
        x_hat.append((z_hat + in_decoder) / sae.scales[i] + sae.means[i])
        error = error + (z - z_hat).square().sum()
        residuals.append((z - z_hat).detach())
        if len(dead):
            found = h[list(dead)].topk(sae.k_aux)
            guesses.append(found.values.relu() @ sae.W_dec[torch.tensor(dead)[found.indices]])
    loss = error / len(x) / sae.d_in
    if not guesses:
        return torch.stack(x_hat), loss, None
    target = torch.stack(residuals)
    return torch.stack(x_hat), loss, (target - torch.stack(guesses)).square().sum() / target.square().sum()


def test_forward_loss_and_gradients_are_those_of_the_formulas(rows):
    sae, dead = fresh(rows, aux_weight=0.5), list(range(20))
    x, timesteps = rows
    found = sae.at(timesteps).step(x, dead=torch.arange(48) < 20)
    x_hat, fvu, aux = reference(sae, x, timesteps, dead)
    torch.testing.assert_close(sae.at(timesteps)(x)[0], x_hat, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.reconstruction, fvu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.aux, aux, rtol=1e-5, atol=1e-5)
    weights = list(sae.parameters())
    ours = torch.autograd.grad(found.loss, weights)
    theirs = torch.autograd.grad(fvu + 0.5 * aux, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_conditioning_it_is_topk_bit_for_bit(rows):
    x, timesteps = rows
    sae = fresh(rows, normalise="none", embedding=0).at(timesteps)
    plain = make_plain(PlainConfig(**BASE), 12, seed=0)
    plain.initialise(x.double().mean(0), x.double().var(0, unbiased=False))
    dead = torch.arange(48) < 20
    ours, theirs = sae.step(x, dead=dead), plain.step(x, dead=dead)
    assert ours.loss.equal(theirs.loss)
    for one, other in zip(
        torch.autograd.grad(ours.loss, list(sae.parameters())),
        torch.autograd.grad(theirs.loss, list(plain.parameters())),
        strict=True,
    ):
        assert one.equal(other)
    assert sae(x)[0].equal(plain(x)[0]) and sae.preactivations(x).equal(plain.preactivations(x))


def test_every_timestep_has_the_same_weight_in_the_loss(rows):
    x, timesteps = rows
    sae = fresh(rows, embedding=0)
    for timestep in TIMESTEPS:
        z = sae.at(timestep).scaled(x[timesteps == timestep])
        torch.testing.assert_close(z.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
        assert float(z.square().sum(1).mean()) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"embedding": 0}, {"normalise": "none"}])
def test_at_one_timestep_it_is_a_plain_autoencoder(rows, settings):
    x, _ = rows
    sae = fresh(rows, **settings)
    for timestep in TIMESTEPS:
        plain = sae.folded(timestep)
        torch.testing.assert_close(plain(x)[0], sae.at(timestep)(x)[0], rtol=1e-4, atol=1e-4)
        assert plain.encode(x).indices.equal(sae.at(timestep).encode(x).indices)
        assert fold(plain).W_enc.equal(sae.W_enc)


def test_the_order_of_rows_does_not_matter(rows):
    sae, (x, timesteps) = fresh(rows), rows
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    one, other = sae.at(timesteps)(x), sae.at(timesteps[order])(x[order])
    torch.testing.assert_close(one[0][order], other[0])
    assert one[1].indices[order].equal(other[1].indices)


def test_saved_and_loaded_it_is_the_same(rows, tmp_path):
    sae, (x, timesteps) = fresh(rows), rows
    back = KSAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert back.timesteps == TIMESTEPS
    assert back.at(timesteps)(x)[0].equal(sae.at(timesteps)(x)[0])
    for broken in ({"times": [10]}, {"timesteps": [10]}, {"timesteps": ["a", "b"]}, {"timesteps": None}, {}):
        settings = sae.saved_settings(None) | {"make_arguments": broken}
        save_probe(tmp_path, kind=KIND + "timestep_topk", schema_version=SCHEMA_VERSION, settings=settings,
                   tensors=sae.state_dict())  # fmt: skip
        with pytest.raises((SchemaError, WeightsMismatch, ConfigError), match="probe"):
            KSAE.from_pretrained(tmp_path)


def test_bad_input_is_refused_with_what_is_allowed(rows):
    sae, (x, timesteps) = fresh(rows), rows
    with pytest.raises(BadTimestep, match=r"(?s)300.*allowed: 10, 200, 700"):
        sae.at(300)
    with pytest.raises(BadTimestep, match="9999"):
        sae.at(torch.tensor([10, 9999]))
    with pytest.raises(ConfigError, match=r"(?s)10, 200, 700.*sae\.at\(10\)"):
        sae.encode(x)
    with pytest.raises(ConfigError, match=r"90 rows with 3"):
        sae.at(timesteps[:3]).encode(x)
    for few in ((), (10,), (10, 10)):
        with pytest.raises(ConfigError, match="several timesteps"):
            make(Config(**BASE), 12, seed=0, timesteps=few)
    with pytest.raises(ConfigError, match="timestep 200"):
        sae.standardise(torch.zeros(3, 12), torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 12))
    for settings in ({"embedding": 3}, {"embedding": -2}, {"row_buffer": 8}, {"pre_bias": "geometric_median"}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Config(**settings)


def test_sinusoids_tell_timesteps_apart():
    found = sinusoids(range(0, 1000, 50), 16)
    torch.testing.assert_close(found.mean(0), torch.zeros(16), atol=1e-6, rtol=0)
    distances = torch.cdist(found, found) + torch.eye(20)
    assert float(distances.min()) > 0.05
    assert sinusoids((0, 10), 0).shape == (2, 0)
