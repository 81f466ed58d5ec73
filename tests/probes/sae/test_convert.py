import json

import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.probes.sae import convert

FORMATS = ["saelens", "dictionary_learning"]
EXPORTED = ["topk", "batch_topk", "matryoshka", "jumprelu"]


def there_and_back(sae, form, folder):
    getattr(convert, f"to_{form}")(sae, folder)
    return getattr(convert, f"from_{form}")(folder)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", EXPORTED)
def test_reconstructions_agree_after_a_round_trip(make_sae, x, name, form, tmp_path):
    sae = make_sae(name)
    sae.b_enc.data += 0.1 * torch.randn(48, generator=torch.Generator().manual_seed(0))
    back = there_and_back(sae, form, tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # safetensors alone makes private files
    assert float(back.scale) == 1 and not float(sae.scale) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(back(x)[0], sae(x)[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(back.W_dec.norm(dim=1), torch.ones(48))


def test_the_written_formula_of_saelens_reconstructs(make_sae, x, tmp_path):
    """The formula of its class: (x - b_dec) W_enc + b_enc, the k largest, ReLU, W_dec, b_dec."""
    from safetensors.torch import load_file

    sae = make_sae()
    folder = convert.to_saelens(sae, tmp_path, cell="mid_block@t100:empty:mean")
    settings, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    h = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = torch.zeros_like(h).scatter(1, h.topk(settings["k"]).indices, h.topk(settings["k"]).values.relu())
    torch.testing.assert_close(z @ w["W_dec"] + w["b_dec"], sae(x)[0].detach(), rtol=1e-4, atol=1e-3)
    assert settings["metadata"]["hook_name"] == "mid_block@t100:empty:mean" and settings["d_sae"] == 48


def test_options_of_saelens_are_folded_or_refused(make_sae, x, tmp_path):
    sae = make_sae()
    convert.to_saelens(sae, tmp_path)
    path = tmp_path / "cfg.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"apply_b_dec_to_input": False}))
    back = convert.from_saelens(tmp_path)
    h = x @ back.W_enc.T + sae.b_enc / sae.scale  # what SAELens computes then
    torch.testing.assert_close(back.preactivations(x), h, rtol=1e-3, atol=1e-3)
    for key, value in {"normalize_activations": "layer_norm", "architecture": "gated"}.items():
        path.write_text(json.dumps(plain | {key: value}))
        with pytest.raises(SchemaError, match=value):
            convert.from_saelens(tmp_path)


def test_unsupported_activations_and_missing_files_are_refused(make_sae, tmp_path):
    with pytest.raises(ConfigError, match="negative activations"):
        convert.to_saelens(make_sae("revelio_released"), tmp_path)
    with pytest.raises(ConfigError, match="no threshold"):
        convert.to_saelens(make_sae("batch_topk", start=False), tmp_path)
    for form in FORMATS:
        with pytest.raises(WeightsMissing, match="no file '(cfg|config).json'"):
            getattr(convert, f"from_{form}")(tmp_path)
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "GatedAutoEncoder"}}')
    with pytest.raises(SchemaError, match="GatedAutoEncoder"):
        convert.from_dictionary_learning(tmp_path)
