"""Autoencoders loaded by the libraries of their formats, and the other way round; skipped where these are absent.

`pip install 'diffprobe[peers]'` installs them.
"""

import json

import pytest
import torch

from diffprobe.probes.sae import convert

EXPORTED = ["topk", "batch_topk", "matryoshka", "jumprelu"]
CLOSE = 1e-5
"""Largest difference of two reconstructions, as a share of the largest feature."""


def same(one, two, x):
    with torch.no_grad():
        assert float((one - two).abs().max()) <= CLOSE * float(x.abs().max())


def trained(make_sae, name):
    """Generic weights: with a bias, and an encoder that differs from the decoder."""
    sae, generator = make_sae(name), torch.Generator().manual_seed(0)
    sae.b_enc.data += 0.1 * torch.randn(48, generator=generator)
    sae.W_enc.data += 0.05 * torch.randn(48, 12, generator=generator)
    return sae


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens", exc_type=ImportError)


@pytest.fixture
def dictionary_learning():
    return pytest.importorskip("dictionary_learning.utils", exc_type=ImportError)


@pytest.mark.parametrize("name", EXPORTED)
def test_saelens_opens_ours(sae_lens, make_sae, x, name, tmp_path):
    sae = trained(make_sae, name)
    theirs = sae_lens.SAE.load_from_disk(convert.to_saelens(sae, tmp_path))
    same(theirs(x), sae(x)[0], x)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("apply_b_dec", [False, True])
def test_we_open_what_saelens_trained_and_saved(sae_lens, x, rescaled, apply_b_dec, tmp_path):
    torch.manual_seed(0)
    settings = sae_lens.TopKTrainingSAEConfig(
        d_in=12, d_sae=48, k=4, rescale_acts_by_decoder_norm=rescaled, apply_b_dec_to_input=apply_b_dec
    )
    theirs = sae_lens.TopKTrainingSAE(settings)
    for part in theirs.parameters():
        part.data += 0.1 * torch.randn_like(part)
    theirs.save_inference_model(tmp_path)
    same(convert.from_saelens(tmp_path)(x)[0], theirs(x), x)


def test_we_open_a_jumprelu_of_saelens(sae_lens, x, tmp_path):
    torch.manual_seed(0)
    theirs = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=12, d_sae=48))
    for part in theirs.parameters():
        part.data = part.data + 0.3 * torch.rand_like(part)
    theirs.save_model(tmp_path)
    same(convert.from_saelens(tmp_path)(x)[0], theirs(x), x)


@pytest.mark.parametrize("name", EXPORTED)
def test_dictionary_learning_opens_ours(dictionary_learning, make_sae, x, name, tmp_path):
    sae = trained(make_sae, name)
    theirs, _ = dictionary_learning.load_dictionary(str(convert.to_dictionary_learning(sae, tmp_path)), "cpu")
    same(theirs(x), sae(x)[0], x)


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"])
def test_we_open_what_dictionary_learning_saved(dictionary_learning, x, kind, tmp_path):
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, top_k

    torch.manual_seed(0)
    shape = {"activation_dim": 12, "dict_size": 48}
    if kind == "JumpReluAutoEncoder":
        theirs = dictionary.JumpReluAutoEncoder(**shape)
    else:
        theirs = getattr({"AutoEncoderTopK": top_k, "BatchTopKSAE": batch_top_k}[kind], kind)(**shape, k=4)
    for part in theirs.parameters():
        part.data = part.data + 0.1 * torch.rand_like(part)
    if kind == "BatchTopKSAE":
        theirs.threshold.fill_(0.5)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": 4}}))
    same(convert.from_dictionary_learning(tmp_path)(x)[0], theirs(x), x)
