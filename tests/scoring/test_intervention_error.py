import pytest
import torch

from diffprobe.backbones.families import dit, flux, sd3, sd_unet
from diffprobe.core.errors import BadTimestep, ConfigError, NonFinite, UnknownTap
from diffprobe.core.rng import noise_for
from diffprobe.scoring.intervention_error import SplicedError
from diffprobe.scoring.intervention_network import HeldOut
from tests.backbones.plans import plan_for

pytestmark = pytest.mark.slow

T = (20, 500)
KEYS = ["a", "b", "c"]
TOKENS = "down_blocks.0.attentions.0.transformer_blocks.0"
PLACES = [("mid_block", "mean"), ("mid_block", "none"), ("down_blocks.0", "grid2"), (TOKENS, "tokens5")]


def open_network(path, tap, pool, rows=None, **options):
    plan = plan_for(str(path), taps=[tap], timesteps=T, pool=pool, seed=3, **options)
    return SplicedError(plan, tap, device="cpu", rows=rows)


@pytest.fixture(scope="module")
def network(tiny_sd):
    opened = {}

    def get(tap="mid_block", pool="mean"):
        if (tap, pool) not in opened:
            opened[tap, pool] = open_network(tiny_sd, tap, pool)
        return opened[tap, pool]

    return get


@pytest.fixture(scope="module")
def samples(network):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return HeldOut(network().encode_images(images), KEYS, ["", "red cat", ""])


@pytest.mark.parametrize(("tap", "pool"), PLACES)
def test_a_perfect_reconstruction_costs_exactly_nothing_and_the_mean_is_mean_ablation(network, samples, tap, pool):
    here = network(tap, pool)
    baseline = here.baseline(samples, samples, T)
    assert baseline.untouched.shape == baseline.ablated.shape == (3, 2)
    assert (baseline.cleared is not None) == (pool in ("mean", "grid2"))
    same = here.spliced(samples, T, lambda x: x.clone())
    assert torch.equal(same.errors, baseline.untouched) and same.fvu == (0.0, 0.0)
    for column, t in enumerate(T):
        mean = here.spliced(samples, [t], lambda x, m=baseline.means[column]: m.expand_as(x))
        assert torch.equal(mean.errors[:, 0], baseline.ablated[:, column])
        assert mean.fvu == pytest.approx((1.0,), rel=1e-5)
        assert not torch.equal(baseline.ablated[:, column], baseline.untouched[:, column])


RECORDED = {  # untouched, mean ablation; by an independent implementation
    "epsilon": (
        [[1.1525799, 1.1446548], [1.0829055, 1.0889769]],
        [[1.1528217, 1.1442184], [1.0828557, 1.0878534]],
    ),
    "v_prediction": (
        [[1.1910801, 2.0099268], [1.1221570, 2.0179592]],
        [[1.1914620, 2.0094038], [1.1220091, 2.0170876]],
    ),
}


@pytest.mark.parametrize("prediction", list(RECORDED))
def test_the_recorded_errors_are_found(prediction, tmp_path):
    here = open_network(sd_unet.tiny(tmp_path / "sd", prediction=prediction), "mid_block", "mean")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    held_out = HeldOut(here.encode_images(images), KEYS[:2], ["", "red cat"])
    baseline = here.baseline(held_out, held_out, T)
    for found, expected in zip((baseline.untouched, baseline.ablated), RECORDED[prediction], strict=True):
        torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [dit.tiny, sd3.tiny, flux.tiny])
def test_transformers_are_measured_too(make, tmp_path):
    """The tap is a layer whose output is image tokens alone; families differ in all else."""
    here = open_network(make(tmp_path / "model"), "transformer_blocks.1.ff", "none", resolution=32)
    samples = HeldOut(here.encode_images(torch.rand(2, 3, 32, 32)), KEYS[:2], ["", ""])
    baseline = here.baseline(samples, samples, T)
    same = here.spliced(samples, T, lambda x: x.clone())
    assert torch.equal(same.errors, baseline.untouched) and baseline.untouched.isfinite().all()
    assert not torch.equal(baseline.ablated, baseline.untouched)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_a_plain_loop_over_diffusers_own_parts(tiny_sd, samples, tmp_path, prediction):
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    path = tiny_sd if prediction == "epsilon" else sd_unet.tiny(tmp_path / "v", prediction=prediction)
    here = open_network(path, "mid_block", "none", draws=2, keep_draws=True)
    assert here.target == prediction.removesuffix("_prediction")
    found = here.spliced(samples, T, lambda x: 0.5 * x)
    untouched = here.baseline(samples, samples, T).untouched
    pipeline = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def error(row, t, draw):
        clean = samples.latents[row : row + 1]
        noise = noise_for(3, KEYS[row], draw, tuple(clean.shape[1:]))[None]
        step = torch.tensor([t])
        target = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, step)
        states, _ = pipeline.encode_prompt(samples.inputs[row], "cpu", 1, do_classifier_free_guidance=False)
        with torch.no_grad():
            predicted = pipeline.unet(scheduler.add_noise(clean, noise, step), t, states).sample
        return float((predicted - target).square().mean())

    def all_errors():
        return torch.tensor([[(error(row, t, 0) + error(row, t, 1)) / 2 for t in T] for row in range(3)]).double()

    torch.testing.assert_close(untouched, all_errors(), rtol=1e-4, atol=1e-6)
    pipeline.unet.mid_block.register_forward_hook(lambda module, args, output: 0.5 * output)
    torch.testing.assert_close(found.errors, all_errors(), rtol=1e-4, atol=1e-6)


def test_order_and_batch_size_do_not_matter(tiny_sd, network, samples):
    def measure(here, samples, timesteps):
        baseline = here.baseline(samples, samples, timesteps)
        spliced = here.spliced(samples, timesteps, lambda x: 0.8 * x + 0.1)
        return torch.stack([baseline.untouched, baseline.ablated, baseline.cleared, spliced.errors]), spliced.fvu

    whole, fvu = measure(network(), samples, T)
    flipped = HeldOut(samples.latents.flip(0), samples.keys[::-1], samples.inputs[::-1])
    alone, alone_fvu = measure(open_network(tiny_sd, "mid_block", "mean", rows=1), flipped, T[::-1])
    torch.testing.assert_close(alone.flip(1, 2), whole, rtol=1e-4, atol=1e-6)
    assert alone_fvu[::-1] == pytest.approx(fvu, rel=1e-4)


def test_every_sample_is_counted_once_a_pass(network, samples):
    seen = []
    network().baseline(samples, samples, T, seen.append)
    network().spliced(samples, T, lambda x: x, seen.append)
    assert sum(seen) == (4 + 1) * len(T) * len(samples)


def test_reconstructions_that_are_none_are_refused(network, samples):
    with pytest.raises(ConfigError, match=r"\(3, 32\) .* \(3, 31\)"):
        network().spliced(samples, T, lambda x: x[:, 1:])
    with pytest.raises(NonFinite, match="'mid_block' .* NaN"):
        network().spliced(samples, T, lambda x: x / 0)
    with pytest.raises(BadTimestep, match="t=1000"):
        network().spliced(samples, [1000], lambda x: x)
    with pytest.raises(BadTimestep, match="t=-1"):
        network().baseline(samples, samples, [-1])


def test_backbones_without_such_an_error_are_refused(tiny_sd, tmp_path):
    with pytest.raises(ConfigError, match="pool=max"):
        open_network(tiny_sd, "mid_block", "max")
    with pytest.raises(ConfigError, match="3 x 3"):
        open_network(tiny_sd, "mid_block", "grid3")
    with pytest.raises(UnknownTap, match="'mid_blocks'"):
        SplicedError(plan_for(str(tiny_sd), taps=["mid_block"], timesteps=T), "mid_blocks")
    with pytest.raises(ConfigError, match="clean images"):
        open_network(tiny_sd, "mid_block", "mean", clean_input=True)
    with pytest.raises(ConfigError, match=r"draws=2(.|\n)*features.keep_draws=true"):
        open_network(tiny_sd, "mid_block", "mean", draws=2)
    with pytest.raises(ConfigError, match="'pixels'.* clean images"):
        SplicedError(plan_for("pixels", taps=["pixels"], timesteps=[0]), "pixels")


def test_the_mean_is_that_of_the_training_samples(network, samples):
    """A mean of the samples that are denoised would know them: mean ablation would look cheaper than it is."""
    here = network()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    train = HeldOut(here.encode_images(images), ["d", "e"], ["", ""])
    baseline, own = here.baseline(samples, train, T), here.baseline(samples, samples, T)
    assert baseline.n_train == 2 and torch.equal(baseline.untouched, own.untouched)
    for column, t in enumerate(T):
        expected = here.means(train, t, {"mid_block": here.splice})["mid_block"]
        assert torch.equal(baseline.means[column], expected)
        assert not torch.equal(expected, own.means[column])
        put = here.spliced(samples, [t], lambda x, mean=expected: mean.expand_as(x))
        assert torch.equal(baseline.ablated[:, column], put.errors[:, 0])
