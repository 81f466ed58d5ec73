import pytest
import torch

from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError, WeightsMissing
from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.base import SCHEMA_VERSION
from diffprobe.probes.sae.topk import TopK
from diffprobe.probes.serialization import save_probe


def test_initialise_centres_and_scales(make_sae, x):
    sae = make_sae()
    centred = (x * sae.scale - sae.b_pre).detach()
    assert centred.mean(0).abs().max() < 1e-4
    assert float(centred.square().sum(1).mean()) == pytest.approx(12, rel=1e-4)
    assert sae.W_enc.equal(sae.W_dec) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()


def test_geometric_median_and_datapoints_are_options(make_sae, x):
    x[:20] += 500  # outliers that move the mean, not the median
    sae = make_sae(x=x, pre_bias="geometric_median", datapoint_blend=1.0)
    assert (sae.b_pre / sae.scale).max() < 25 < x.mean(0).min()
    centred = torch.nn.functional.normalize(x * sae.scale - sae.b_pre, dim=1)
    assert (sae.W_dec @ centred.T).max(1).values.min() > 0.999 and sae.W_enc.equal(sae.W_dec)
    with pytest.raises(ConfigError, match="0 were given"):
        make_sae(start=False, datapoint_blend=0.5).initialise(x.double().mean(0), x.double().var(0))


def test_decode_is_the_scaled_sum_of_decoder_rows(make_sae, x, variant):
    sae = make_sae(variant)
    with torch.no_grad():
        x_hat, (values, indices) = sae(x)
        dense = torch.zeros(200, 48).scatter_add(1, indices, values)
        torch.testing.assert_close(x_hat, (dense @ sae.W_dec + sae.b_pre) / sae.scale)
    assert not values.requires_grad and values.diff(dim=1).max() <= 0
    assert sae.relu is False or values.min() >= 0


def test_a_code_holds_all_that_was_decoded_wherever_it_stands(make_sae, x):
    sae = make_sae()
    select = sae.select

    def with_a_hole(*args, **kwargs):
        selected, revived = select(*args, **kwargs)
        return selected._replace(part=torch.tensor([-1, 0, 0, -1]).expand_as(selected.part)), revived

    sae.select = with_a_hole
    out, whole = sae.step(x), sae.encode(x)
    assert out.code.values[:, 1:].equal(whole.values[:, 1:3]) and not out.code.values[:, 0].any()
    error = ((x - sae.decode(out.code)) * sae.scale).square().sum() / 200 / 12
    torch.testing.assert_close(out.reconstruction, error)


def test_decoder_keeps_unit_norm_and_parallel_gradient_goes(make_sae, x, variant):
    sae = make_sae(variant)
    sae.step(x).loss.backward()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    torch.optim.Adam(sae.parameters(), lr=0.1).step()
    sae.begin_step() if variant == "revelio_released" else sae.end_step()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def test_files_bring_back_the_variant_and_its_codes(make_sae, x, variant, tmp_path):
    sae = make_sae(variant)
    sae.save_pretrained(tmp_path, cell="mid_block@t100:empty:mean")
    back = KSAE.from_pretrained(tmp_path)
    assert type(back) is type(sae) and back.config == sae.config
    assert back.encode(x).indices.equal(sae.encode(x).indices) and back(x)[0].equal(sae(x)[0])
    assert type(sae).from_pretrained(tmp_path).W_enc.equal(sae.W_enc)


def test_another_schema_another_variant_and_nothing_are_refused(make_sae, tmp_path):
    make_sae("jumprelu").save_pretrained(tmp_path)
    with pytest.raises(SchemaError, match="'probe/sae/jumprelu', expected 'probe/sae/topk'"):
        TopK.from_pretrained(tmp_path)
    text = (tmp_path / "probe.json").read_text()
    (tmp_path / "probe.json").write_text(text.replace('"schema_version": 3', '"schema_version": 9'))
    with pytest.raises(SchemaError, match="schema version 9"):
        KSAE.from_pretrained(tmp_path)
    (tmp_path / "probe.json").write_text(text.replace("probe/sae/jumprelu", "probe/classifier/linear"))
    with pytest.raises(SchemaError, match="probe/classifier/linear"):
        KSAE.from_pretrained(tmp_path)
    with pytest.raises(WeightsMissing, match="no saved probe"):
        KSAE.from_pretrained(tmp_path / "empty")


def test_bad_input(make_sae, x, variant):
    sae = make_sae(variant)
    for call in (sae.encode, sae.step, sae.preactivations):
        with pytest.raises(ConfigError, match=r"\(200, 7\).* 12"):
            call(x[:, :7])
    with pytest.raises(ConfigError, match="k = 9 .* n_latents = 8"):
        make_sae(variant, k=9, n_latents=8, start=False)
    with pytest.raises(ConfigError, match="constant"):
        make_sae(variant, x=torch.ones(5, 12))


def test_autocast_keeps_weights_and_sums_in_float32(make_sae, x, variant):
    sae, dead = make_sae(variant), torch.arange(48) >= 30
    with torch.autocast("cpu", torch.bfloat16):
        out = sae.step(x, dead=dead)
    assert out.code.values.dtype == out.loss.dtype == torch.float32
    out.loss.backward()
    assert {p.grad.dtype for p in sae.parameters()} == {torch.float32}
    assert float(out.loss.detach()) == pytest.approx(float(sae.step(x, dead=dead).loss.detach()), rel=0.05)


def test_evaluation_changes_no_state(make_sae, x, variant):
    sae = make_sae(variant).eval()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.step(x), sae(x), sae.encode(x)
    assert all(value.equal(before[name]) for name, value in sae.state_dict().items())


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("x", [[[0.0] * 12], None, {"a": 1}])
def test_features_that_are_no_tensor_are_named(make_sae, x):
    with pytest.raises(ConfigError, match="must be a tensor.*\n.*as_tensor"):
        make_sae()(x)


def test_settings_that_do_not_fit_the_tensors_make_nothing(make_sae, tmp_path):
    """A width of 10^12 in the settings must not be allocated."""
    sae = make_sae()
    tensors, settings = sae.state_dict(), {"d_in": 12, "cell": None, "config": {"k": 4, "n_latents": 48}}
    for change in ({"d_in": 10**12}, {"d_in": "12"}, {"config": {"k": 4, "n_latents": 10**12}}, {"config": {"k": 4}}):
        save_probe(
            tmp_path, kind="probe/sae/topk", schema_version=SCHEMA_VERSION, settings=settings | change, tensors=tensors
        )
        with pytest.raises(DiffprobeError, match="probe.json"):
            KSAE.from_pretrained(tmp_path)
