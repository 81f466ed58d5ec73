import json

import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.probes.sae import convert
from tests.hostile.harness import canary

__all__ = ["canary"]  # a fixture
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


def rewrite(folder, **changes):
    """Change settings of a written cfg.json or config.json; a value of None removes the key."""
    path = folder / "cfg.json" if (folder / "cfg.json").exists() else folder / "config.json"
    settings = json.loads(path.read_text())
    target = settings.get("trainer", settings)
    target.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del target[key]
    path.write_text(json.dumps(settings))


def retensor(folder, change):
    from safetensors.torch import load_file, save_file

    if (folder / "cfg.json").exists():
        tensors = load_file(folder / "sae_weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "sae_weights.safetensors")
    else:
        tensors = torch.load(folder / "ae.pt", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / "ae.pt")


OLD_TOPK = [
    pytest.param({"k": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, id="version-5"),
    pytest.param({"k": None, "activation_fn": "topk", "activation_fn_kwargs": {"k": 4}}, id="renamed"),
    pytest.param(
        {"architecture": "standard", "k": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        id="version-3",
    ),
    pytest.param({"activation_fn_kwargs": {"k": 4}, "activation_fn": "topk"}, id="both"),
    pytest.param({"rescale_acts_by_decoder_norm": None, "reshape_activations": None}, id="before-these-options"),
    pytest.param({"normalize_activations": False, "finetuning_scaling_factor": False}, id="version-2"),
]


@pytest.mark.parametrize("changes", OLD_TOPK)
def test_spellings_of_older_versions_of_saelens_are_read(make_sae, x, tmp_path, changes):
    sae = make_sae()
    rewrite(convert.to_saelens(sae, tmp_path), **changes)
    back = convert.from_saelens(tmp_path)
    assert back.k == sae.k == 4
    torch.testing.assert_close(back(x)[0], sae(x)[0], rtol=1e-4, atol=1e-3)


SAELENS_REFUSED = [
    ({"k": None}, "does not say how many latents"),
    ({"k": None, "activation_fn_kwargs": {}}, "does not say how many latents"),
    ({"activation_fn_kwargs": {"k": 5}}, "4 and 5"),
    ({"activation_fn_kwargs": {"k": 4, "postact_fn": "identity"}}, "postact_fn"),
    ({"k": 0}, "k is 0"),
    ({"k": 4.5}, "k is 4.5"),
    ({"k": "4"}, "k is 4"),
    ({"k": True}, "k is True"),
    ({"activation_fn_str": "relu"}, "topk.*relu"),
    ({"activation_fn_str": "relu", "activation_fn": "topk"}, "contradicts itself"),
    ({"architecture": "standard"}, "standard"),
    ({"architecture": ["topk"]}, "architecture"),
    ({"apply_b_dec_to_input": None}, "lacks apply_b_dec_to_input"),
    ({"normalize_activations": None}, "lacks normalize_activations"),
    ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is false"),
    ({"normalize_activations": True}, "normalize_activations = True"),
    ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
    ({"reshape_activations": "hook_z"}, "hook_z"),
    ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ({"d_in": 13}, "d_in is 13, the weights have 12"),
    ({"d_sae": 49}, "d_sae is 49, the weights have 48"),
]


@pytest.mark.parametrize(("changes", "message"), SAELENS_REFUSED)
def test_what_is_missing_or_contradicts_itself_is_refused(make_sae, tmp_path, changes, message):
    rewrite(convert.to_saelens(make_sae(), tmp_path), **changes)
    with pytest.raises(SchemaError, match=f"(?s)cfg.json.*{message}"):
        convert.from_saelens(tmp_path)


LEARNING_REFUSED = [
    ({"k": 5}, "5"),
    ({"dict_class": None}, "None"),
    ({"activation_dim": 3}, "activation_dim is 3"),
    ({"dict_size": 3}, "dict_size is 3"),
]


@pytest.mark.parametrize(("changes", "message"), LEARNING_REFUSED)
def test_the_same_of_dictionary_learning(make_sae, tmp_path, changes, message):
    rewrite(convert.to_dictionary_learning(make_sae(), tmp_path), **changes)
    with pytest.raises(SchemaError, match=f"(?s)config.json.*{message}"):
        convert.from_dictionary_learning(tmp_path)


def test_k_may_be_in_one_of_two_places_and_has_to_be_in_one(make_sae, tmp_path):
    folder = convert.to_dictionary_learning(make_sae(), tmp_path)
    rewrite(folder, k=None)
    assert convert.from_dictionary_learning(folder).k == 4
    rewrite(folder, k=4)
    retensor(folder, lambda t: t.pop("k"))
    assert convert.from_dictionary_learning(folder).k == 4
    rewrite(folder, k=None)
    with pytest.raises(SchemaError, match="does not say how many latents"):
        convert.from_dictionary_learning(folder)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["batch_topk", "jumprelu"])
def test_a_threshold_is_required_where_it_is_used(make_sae, tmp_path, form, name):
    getattr(convert, f"to_{form}")(make_sae(name), tmp_path)
    if form == "saelens" and name == "batch_topk":  # its training form
        rewrite(tmp_path, architecture="batchtopk", k=4)
        retensor(tmp_path, lambda t: t.update(topk_threshold=t.pop("threshold")[0].clone()))
        assert convert.from_saelens(tmp_path).k == 4
    retensor(tmp_path, lambda t: [t.pop(key) for key in list(t) if "threshold" in key])
    with pytest.raises(SchemaError, match="missing: (topk_)?threshold"):
        getattr(convert, f"from_{form}")(tmp_path)


DAMAGES = [
    lambda t: t.pop("b_dec"),
    lambda t: t.update(b_dec=torch.zeros(3)),
    lambda t: t.update(b_dec=torch.full((12,), float("nan"))),
    lambda t: t.update(b_dec=torch.zeros(12, dtype=torch.complex64)),
    lambda t: t.update(W_gate=torch.zeros(3)),
    lambda t: t.update(b_dec=torch.zeros(())),
    lambda t: t.clear(),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_named(make_sae, tmp_path, form, damage):
    getattr(convert, f"to_{form}")(make_sae(), tmp_path)
    retensor(tmp_path, damage)
    with pytest.raises(SchemaError, match=r"sae_weights\.safetensors|ae\.pt"):
        getattr(convert, f"from_{form}")(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"])
@pytest.mark.parametrize("form", FORMATS)
def test_files_that_cannot_be_read_are_named(make_sae, tmp_path, form, content):
    getattr(convert, f"to_{form}")(make_sae(), tmp_path)
    weights, settings = (
        tmp_path / name
        for name in {"saelens": ("sae_weights.safetensors", "cfg.json")}.get(form, ("ae.pt", "config.json"))
    )
    weights.write_bytes(content)
    with pytest.raises(SchemaError, match=weights.name):
        getattr(convert, f"from_{form}")(tmp_path)
    settings.write_bytes(content)
    with pytest.raises(SchemaError, match=settings.name):
        getattr(convert, f"from_{form}")(tmp_path)


def test_tensors_larger_than_their_file_are_refused(make_sae, tmp_path):
    convert.to_dictionary_learning(make_sae(), tmp_path)
    torch.save({"W_dec": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "ae.pt")
    with pytest.raises(SchemaError, match="claims to hold more: W_dec"):
        convert.from_dictionary_learning(tmp_path)


def test_a_pickle_in_place_of_a_state_dict_is_not_executed(make_sae, tmp_path, canary):
    convert.to_dictionary_learning(make_sae(), tmp_path)
    for payload in (canary.torch_file(), canary.pickle()):
        (tmp_path / "ae.pt").write_bytes(payload)
        with pytest.raises(SchemaError, match="ae.pt"):
            convert.from_dictionary_learning(tmp_path)
