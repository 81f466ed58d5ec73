"""The contract of class-contrast terms over all files of the registry, and the divergence of reverse kernels."""

import dataclasses

import pytest
import torch

from diffprobe.backbones.noise import make_schedule
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.core.registry import REGULARIZERS
from diffprobe.generative.architectures import BetaSchedule
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import (
    ClassBatch,
    RegularizerConfig,
    ReverseKernels,
    TrainingClasses,
    complete_regularizer,
    draw_classes,
    make_regularizer,
)
from diffprobe.scoring.kernel_overlap import kernel_factors

CLASSES = TrainingClasses(attribute="role", names=("cook", "judge", "sailor"), counts=(64, 16, 4))
TIMESTEPS = torch.tensor([10, 300, 900, 0])


@pytest.fixture
def process():
    return ForwardProcess(BetaSchedule().scheduler().alphas_cumprod.float())


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))


@pytest.fixture(params=REGULARIZERS.names())
def regularizer(request, process):
    found = make_regularizer(RegularizerConfig(name=request.param), process, "epsilon", CLASSES)
    found.change_network(torch.nn.Conv2d(2, 2, 1), seed=0)
    return found


def embedding(regularizer, noised):
    head = regularizer.make_head(noised.shape[1], seed=0)
    return None if head is None else head(noised)


def linear(scale):
    """A network whose output depends on the class: noised * (scale + class)."""
    return lambda noised, timesteps, classes: noised * (scale + classes[:, None, None, None])


def test_the_divergence_is_the_weighted_distance_of_noises(process, pair):
    """KL = w_t |eps_i - eps_j|^2, w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)), sigma_t^2 = beta_t."""
    abar = BetaSchedule().scheduler().alphas_cumprod.double()
    alpha = abar / torch.cat([torch.ones(1).double(), abar[:-1]])
    beta = 1 - alpha
    found = ReverseKernels(ForwardProcess(abar), "epsilon").divergence(*pair, TIMESTEPS)
    for row, t in enumerate(TIMESTEPS.tolist()):
        weight = beta[t] ** 2 / (2 * beta[t] * alpha[t] * (1 - abar[t]))
        expected = float(weight * (pair[0][row] - pair[1][row]).double().square().sum())
        assert float(found[row]) == pytest.approx(expected, rel=1e-6)


def test_the_divergence_is_that_of_the_gaussians_themselves(pair):
    abar = BetaSchedule().scheduler().alphas_cumprod.double()
    found = ReverseKernels(ForwardProcess(abar), "epsilon").divergence(*pair, TIMESTEPS)
    noised = torch.ones(2, 3, 3, dtype=torch.float64)
    for row, t in enumerate(TIMESTEPS.tolist()[:3]):
        alpha, beta = abar[t] / abar[t - 1], 1 - abar[t] / abar[t - 1]
        kernels = []
        for eps in pair:
            clean = (noised - (1 - abar[t]).sqrt() * eps[row].double()) / abar[t].sqrt()
            mean = (abar[t - 1].sqrt() * beta * clean + alpha.sqrt() * (1 - abar[t - 1]) * noised) / (1 - abar[t])
            kernels.append(torch.distributions.Normal(mean, beta.sqrt()))
        expected = torch.distributions.kl_divergence(*kernels).sum()
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "sample")])
def test_the_divergence_is_half_the_squared_distance_of_the_overlap_probe(ours, theirs):
    abar = BetaSchedule().scheduler().alphas_cumprod.double()
    schedule = make_schedule(BetaSchedule().scheduler().config)
    factors = kernel_factors(theirs, [10, 300, 900], schedule)
    found = ReverseKernels(ForwardProcess(abar), ours).divergence_factor[[10, 300, 900]].double()
    torch.testing.assert_close(found, factors.square() / 2, rtol=2e-3, atol=0)  # its tables are float32


def test_all_kinds_of_prediction_have_the_same_distance_of_noises(process, pair):
    """The same two x_0 as noises, velocities and images."""
    t, noised = torch.tensor([10, 300, 700, 900]), torch.ones(4, 2, 3, 3)
    signal, sigma = (values[t, None, None, None] for values in (process.signal, process.sigma))
    noises = [(noised - signal * clean) / sigma for clean in pair]
    velocities = [signal * noise - sigma * clean for noise, clean in zip(noises, pair, strict=True)]
    expected = ReverseKernels(process, "epsilon")
    for kind, values in (("sample", pair), ("v_prediction", velocities)):
        kernels = ReverseKernels(process, kind)
        torch.testing.assert_close(
            kernels.noise_distance(*values, t), expected.noise_distance(*noises, t), rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(
            kernels.divergence(*values, t), expected.divergence(*noises, t), rtol=1e-3, atol=1e-5
        )


def test_a_kind_of_prediction_without_kernels_is_refused(process):
    with pytest.raises(ConfigError, match="flow.*\n*.*v_prediction"):
        ReverseKernels(process, "flow")


def test_too_few_classes_or_images_are_refused_by_name():
    with pytest.raises(ConfigError, match="role.*1 class.*cook"):
        TrainingClasses(attribute="role", names=("cook",), counts=(9,))
    with pytest.raises(EmptyClass, match="judge.*1 image"):
        TrainingClasses(attribute="role", names=("cook", "judge"), counts=(9, 1))


def test_classes_are_drawn_by_their_distribution_and_never_the_own():
    assert CLASSES.probabilities("uniform").tolist() == pytest.approx([1 / 3] * 3)
    assert CLASSES.probabilities("sqrt").tolist() == pytest.approx([8 / 14, 4 / 14, 2 / 14])
    assert CLASSES.probabilities("frequency").tolist() == pytest.approx([64 / 84, 16 / 84, 4 / 84])
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(3).repeat(200)
    drawn = draw_classes(CLASSES.probabilities("frequency"), 600, generator, but=own.tolist())
    assert bool((drawn != own).all()) and set(drawn.tolist()) == {0, 1, 2}
    assert len(draw_classes(CLASSES.probabilities("uniform"), 0, generator)) == 0


def test_the_target_still_leads_to_the_noised_latents(regularizer, process, pair):
    clean, noise = pair
    classes = torch.tensor([0, 1, 2, -1])
    before = process.add_noise(clean, noise, TIMESTEPS)
    found = regularizer.retarget(clean, noise, TIMESTEPS, classes, torch.Generator().manual_seed(0))
    torch.testing.assert_close(process.add_noise(*found, TIMESTEPS), before)


def test_a_term_is_seeded_counts_its_passes_and_leaves_out_samples_without_class(regularizer, pair):
    noised, rows = pair[0], []
    scale = torch.tensor(0.5, requires_grad=True)
    network = linear(scale)

    def predict(noised, timesteps, classes):
        rows.append(len(noised))
        return network(noised, timesteps, classes)

    classes = torch.tensor([0, 1, -1, 2])
    batch = ClassBatch(noised, TIMESTEPS, classes, network(noised, TIMESTEPS, classes), embedding(regularizer, noised))
    one, two = (regularizer.term(batch, predict, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.shape == () and bool(one.isfinite()) and torch.equal(one, two)
    assert rows == [3, 3] * regularizer.extra_passes
    without = dataclasses.replace(batch, classes=torch.full((4,), -1))
    nothing = regularizer.term(without, predict, torch.Generator())
    assert float(nothing) == 0 and nothing.requires_grad


def test_a_batch_of_one_class_is_defined(regularizer, pair):
    classes = torch.zeros(4, dtype=torch.long)
    network = linear(torch.tensor(0.5, requires_grad=True))
    batch = ClassBatch(
        pair[0], TIMESTEPS, classes, network(pair[0], TIMESTEPS, classes), embedding(regularizer, pair[0])
    )
    assert bool(regularizer.term(batch, network, torch.Generator().manual_seed(0)).isfinite())
    regularizer.retarget(*pair, TIMESTEPS, classes, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", REGULARIZERS.names())
def test_settings_are_completed_and_unknown_ones_are_refused(name):
    found = complete_regularizer(RegularizerConfig(name=name))
    assert set(found.params) == {field.name for field in dataclasses.fields(REGULARIZERS.load(name).Config)}
    assert complete_regularizer(found) == found
    with pytest.raises(ConfigError, match="no_such_key"):
        complete_regularizer(RegularizerConfig(name=name, params={"no_such_key": 1}))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("diffrop", {"weight": 0.0}), ("diffrop", {"margin": -1.0}), ("cbdm", {"tau": 0.0}), ("cbdm", {"gamma": -0.1}),
        ("cbdm", {"tau": float("inf")}), ("orientation_calibration", {"last_timestep": 0}),
        ("coral", {"weight": 0.0}), ("coral", {"temperature": 0.0}), ("coral", {"time_scale": -1.0}),
        ("coral", {"width": 0}), ("capacity", {"weight": 0.0}), ("capacity", {"margin": 0.0}),
        ("capacity", {"rank": 0}),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(name, params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        complete_regularizer(RegularizerConfig(name=name, params=params))


def test_an_unknown_regularizer_names_the_nearest():
    with pytest.raises(UnknownName, match="diffrop"):
        complete_regularizer(RegularizerConfig(name="difrop"))
