"""Edits of latents: the reconstruction error is kept, and the change is that of a plain decoder."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.core.registry import probes
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.types import Code
from diffprobe.scoring.edits.latent import EditLatents, activations, mean_activations

D_IN, N_LATENTS = 12, 40


def sae_of(variant: str = "topk") -> KSAE:
    module = probes("sae").load(variant)
    sae: KSAE = module.make(module.Config(k=5, n_latents=N_LATENTS), D_IN, seed=1)
    rows = rows_of(200)
    sae.initialise(rows.mean(0), rows.var(0, correction=0), rows)
    with torch.no_grad():
        sae.b_enc.add_(0.05)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.3)
    return sae.eval()


def rows_of(n: int, seed: int = 0) -> torch.Tensor:
    return 3 + 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def dense(sae: KSAE, x: torch.Tensor) -> torch.Tensor:
    """Return the code as a plain matrix."""
    values, indices = sae.encode(x)
    return torch.zeros(len(x), N_LATENTS, dtype=values.dtype).scatter_add_(1, indices, values).detach()


def decoded(sae: KSAE, code: torch.Tensor) -> torch.Tensor:
    indices = torch.arange(N_LATENTS).expand(len(code), -1)
    return sae.decode(Code(code, indices)).detach()


def used(sae: KSAE, n: int = 2) -> tuple[int, ...]:
    """Return the latents that are active most often."""
    return tuple((dense(sae, rows_of(200)) > 0).sum(0).argsort(descending=True)[:n].tolist())


@pytest.mark.parametrize("variant", ["topk", "batch_topk", "matryoshka", "jumprelu"])
@pytest.mark.parametrize("mode", ["add", "set", "ablate"])
@pytest.mark.parametrize("strength", [-2.0, 0.5, 1.0])
def test_it_equals_the_difference_of_two_decodings(variant, mode, strength):
    sae, x = sae_of(variant), rows_of(50, seed=2)
    latents = used(sae)
    means = mean_activations(sae, rows_of(200), latents)
    code = dense(sae, x)
    new = code.clone()
    for latent, mean in zip(latents, means, strict=True):
        old = code[:, latent]
        new[:, latent] = {
            "add": (old + strength * mean).clamp(min=0),
            "set": torch.full_like(old, max(strength * mean, 0)),
            "ablate": (1 - strength) * old,
        }[mode]
    expected = x + decoded(sae, new) - decoded(sae, code)
    found = EditLatents(dictionary=sae, latents=latents, means=means, mode=mode)(x, strength)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if (new != code).any():
        assert not torch.equal(found, x)


def test_ablation_subtracts_the_decoder_row_times_the_activation_and_leaves_rows_without_it_bit_by_bit():
    sae, x = sae_of(), rows_of(80, seed=3)
    (latent,) = used(sae, 1)
    a = dense(sae, x)[:, latent]
    assert 0 < (a > 0).sum() < len(x)
    found = EditLatents(dictionary=sae, latents=(latent,), means=(1.0,), mode="ablate")(x, 1.0)
    torch.testing.assert_close(found - x, -a[:, None] * sae.W_dec[latent].detach() / sae.scale, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[a == 0], x[a == 0])


def test_a_strength_that_gives_the_same_code_changes_no_bit():
    sae, x = sae_of(), rows_of(30, seed=4)
    (latent,) = used(sae, 1)
    for mode in ("add", "set", "ablate"):
        edit = EditLatents(dictionary=sae, latents=(latent,), means=(0.7,), mode=mode)
        assert torch.equal(edit(x, 0.0), x)
    silent = x[dense(sae, x)[:, latent] == 0]
    add = EditLatents(dictionary=sae, latents=(latent,), means=(0.7,))
    assert torch.equal(add(silent, -5.0), silent)  # an activation does not become negative


def test_the_unit_is_the_mean_over_rows_on_which_the_latent_is_active():
    sae, rows = sae_of(), rows_of(200)
    latents = used(sae, 3)
    code = dense(sae, rows)
    expected = [float(code[:, latent][code[:, latent] > 0].mean()) for latent in latents]
    assert mean_activations(sae, rows, latents) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(activations(sae, rows, latents), code[:, list(latents)].double())


def test_rows_are_edited_by_themselves():
    sae, x = sae_of("batch_topk"), rows_of(20, seed=5)
    edit = EditLatents(dictionary=sae, latents=used(sae), means=(1.0, 2.0))
    alone = torch.cat([edit(row[None], 1.5) for row in x])
    torch.testing.assert_close(edit(x, 1.5), alone, rtol=1e-5, atol=1e-5)


def test_its_identity_depends_on_all_that_fixes_it():
    sae = sae_of()
    base = {"dictionary": sae, "latents": (1, 2), "means": (1.0, 1.0), "mode": "add"}
    found = {EditLatents(**base).identity}
    for change in ({"latents": (1, 3)}, {"means": (1.0, 2.0)}, {"mode": "set"}, {"dictionary": sae_of("matryoshka")}):
        found.add(EditLatents(**{**base, **change}).identity)
    assert len(found) == 5
    assert EditLatents(**base).identity in found


def test_bad_input():
    sae = sae_of()
    with pytest.raises(ConfigError, match=r"latent 40 is out of range: 0 to 39"):
        EditLatents(dictionary=sae, latents=(40,), means=(1.0,))
    with pytest.raises(ConfigError, match="each once"):
        EditLatents(dictionary=sae, latents=(1, 1), means=(1.0, 1.0))
    with pytest.raises(ConfigError, match="one above 0"):
        EditLatents(dictionary=sae, latents=(1,), means=(0.0,))
    with pytest.raises(UnknownName, match="mode"):
        EditLatents(dictionary=sae, latents=(1,), means=(1.0,), mode="swap")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(3, 7\)"):
        EditLatents(dictionary=sae, latents=(1,), means=(1.0,))(torch.zeros(3, 7), 1.0)
    with pytest.raises(EmptyClass, match="active on none of 0 rows"):
        mean_activations(sae, torch.zeros(0, D_IN), (1,))
