"""A tiny self-guided denoiser on the tiny shards: what the prototypes change, resumption, collapse, bad settings."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.generative.cluster_assignment import Clusters, save_prototypes
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.long_tail import ClassesConfig
from diffprobe.generative.objectives.base import ObjectiveConfig
from diffprobe.generative.self_guided import SelfGuided, SelfGuidedFlow, SelfGuidedTraining
from diffprobe.generative.sinkhorn_prototypes import PrototypeSettings
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy_generative import toy_trainings

PROTOTYPES = PrototypeSettings(n=4, hidden=8, width=6, queue=8, timesteps=(0, 600), warmup=0.0, least_effective=1.0)
TRAINER = TrainerConfig(
    accelerator="cpu", max_epochs=2, learning_rate=1e-2, gradient_clip=0.1, enable_progress_bar=False, log_every_steps=1
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, tiny_sd: Path) -> DenoiserTraining:
    """The unconditional denoiser without prototypes."""
    made = toy_trainings(tiny_shards, tiny_sd, tmp_path_factory.mktemp("autoencoder"))["denoiser"]
    changed: DenoiserTraining = dataclasses.replace(made, drop_captions=1.0, drop_captions_clean=1.0, trainer=TRAINER)
    return changed


@pytest.fixture(scope="module")
def config(plain: DenoiserTraining) -> SelfGuidedTraining:
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return SelfGuidedTraining(**fields, prototypes=PROTOTYPES)


def fit(config: Any, folder: Path, *, checkpoint: Path | None = None, callbacks: tuple[Any, ...] = ()) -> Any:
    module, data = config.make()
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=folder, callbacks=[EMACallback(config.ema_decay), *callbacks])
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        module.logged = dict(trainer.callback_metrics)
        trainer.validate(module, datamodule=data, verbose=False)
    return module


def with_prototypes(config: SelfGuidedTraining, **changes: Any) -> SelfGuidedTraining:
    return dataclasses.replace(config, prototypes=dataclasses.replace(config.prototypes, **changes))


@pytest.fixture(scope="module")
def trained(config: SelfGuidedTraining, tmp_path_factory: pytest.TempPathFactory) -> SelfGuided:
    module: SelfGuided = fit(config, tmp_path_factory.mktemp("run"))
    return module


def network_of(module: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.startswith("prototypes")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.slow
def test_the_released_form_leaves_the_denoiser_as_an_unconditional_one(
    plain: DenoiserTraining, trained: SelfGuided, tmp_path: Path
) -> None:
    assert same(network_of(fit(plain, tmp_path)), network_of(trained))


@pytest.mark.slow
def test_the_described_form_changes_the_denoiser(
    config: SelfGuidedTraining, trained: SelfGuided, tmp_path: Path
) -> None:
    described = fit(with_prototypes(config, form="described"), tmp_path)
    assert not same(network_of(described), network_of(trained))


def test_a_random_network_keeps_its_weights_and_the_prototypes_learn(
    config: SelfGuidedTraining, tmp_path: Path
) -> None:
    other = with_prototypes(config, random_network=True)
    start, end = SelfGuided(other), fit(other, tmp_path)
    assert same(network_of(start), network_of(end))
    assert not start.prototypes.prototypes.weight.equal(end.prototypes.prototypes.weight)


def test_curves_and_the_record_have_the_entropy_of_use(trained: SelfGuided) -> None:
    names = {"train/prototypes", "train/prototype_entropy", "val/prototype_entropy", "val/prototypes_used", "val/mse"}
    logged: Any = trained.logged
    assert names <= set(logged)
    facts = trained.facts
    assert [step for step, _ in facts["entropy_curve"]] == [0, 1, 2, 3]
    assert all(0 <= nats <= math.log(4) + 1e-6 for _, nats in facts["entropy_curve"])
    assert sum(facts["shares"]) == pytest.approx(1) and 1 <= facts["effective_prototypes"] <= 4
    assert facts["tap"] == "mid_block" and facts["timestep"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True], ids=["trained", "no step left"])
def test_saved_statistics_are_of_the_saved_weights(config: SelfGuidedTraining, tmp_path: Path, resumed: bool) -> None:
    config = dataclasses.replace(config, trainer=dataclasses.replace(TRAINER, max_steps=3))  # ends inside an epoch
    module = fit(config, tmp_path)
    if resumed:
        module = fit(config, tmp_path, checkpoint=find_checkpoint(tmp_path, resume=True))
    module.save(tmp_path / "weights")
    norm = Clusters(tmp_path / "weights").prototypes.head[1]
    hidden = torch.stack([module.prototypes.head[0](one.float()).mean(0) for one in module._training_features()])
    torch.testing.assert_close(norm.running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_captions_change_nothing(trained: SelfGuided) -> None:
    generator = torch.Generator().manual_seed(0)
    noised, timesteps = torch.randn(2, 2, 8, 8, generator=generator), torch.tensor([10, 500])
    with torch.no_grad():
        found = trained.predict(noised, timesteps, ["red round", "blue"])
        assert found.equal(trained.predict(noised, timesteps, ["", ""]))


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights_queue_and_curve(
    config: SelfGuidedTraining, trained: SelfGuided, tmp_path: Path
) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    fit(config, tmp_path, callbacks=(Stop(),))
    checkpoint = find_checkpoint(tmp_path, resume=True)
    assert checkpoint is not None
    resumed = fit(config, tmp_path, checkpoint=checkpoint)
    assert same(dict(resumed.state_dict()), dict(trained.state_dict()))
    assert resumed.entropy_curve == trained.entropy_curve and resumed.facts == trained.facts


def test_saved_clusters_are_those_of_the_training(trained: SelfGuided, tmp_path: Path) -> None:
    trained.save(tmp_path)
    table = trained._table("val")
    rows = torch.arange(len(table))
    clusters = Clusters(tmp_path)
    ours, read = trained.clusters_of("val", rows), clusters.features(table.to_float(rows), table.keys)
    share = float((clusters.assign(read) == ours.cpu()).float().mean())
    assert share > 0.9  # the saved denoiser has half precision


def test_a_flow_is_clustered_too(config: SelfGuidedTraining, tmp_path: Path) -> None:
    flow = dataclasses.replace(
        config, objective=ObjectiveConfig(name="flow_matching"), noise=None,
        transformer=TransformerShape(layers=2, heads=2, head_width=8),
        model=type(config.model)(text_width=16, text_layers=2, text_heads=2, vocab_size=540, max_tokens=16),
    )  # fmt: skip
    module = fit(flow, tmp_path / "run")
    assert isinstance(module, SelfGuidedFlow) and module.tap == "transformer_blocks.0"
    module.save(tmp_path / "weights")
    table = module._table("val")
    ours = module.clusters_of("val", torch.arange(len(table)))
    clusters = Clusters(tmp_path / "weights")
    read = clusters.assign(clusters.features(table.to_float(slice(None)), table.keys))
    assert float((read == ours.cpu()).float().mean()) > 0.9


def test_a_collapse_is_named_with_the_curve_and_refused_as_classes(
    config: SelfGuidedTraining, trained: SelfGuided, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = SelfGuided(config).prototypes.eval()
    with torch.no_grad():
        found = dict(head.named_parameters())
        first = found["prototypes.weight"][0].clone()
        found["prototypes.weight"][1:] = -first
        found["head.3.weight"].zero_()
        found["head.3.bias"].copy_(first)
    assert head.assign(torch.randn(9, head.d_in)).tolist() == [0] * 9
    facts = {**trained.facts, "collapsed": True, "effective_prototypes": 1.0}
    trained.save(tmp_path)
    save_prototypes(tmp_path, head, facts)
    with pytest.raises(ConfigError, match=r"collapsed: 1\.00 effective prototypes of 4.*nats: \d\.\d\d at step 0"):
        Clusters(tmp_path).require_clusters()
    before, trained.facts = trained.facts, facts
    with caplog.at_level(logging.WARNING):
        trained.save(tmp_path)
    trained.facts = before
    assert "the clusters collapsed" in caplog.text


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"drop_captions": 0.5}, "drop_captions"), ({"classes": ClassesConfig(attribute="colour")}, "classes"),
        ({"text_noise": 0.1}, "text_noise"),
    ],
)  # fmt: skip
def test_settings_of_conditions_are_refused(config: SelfGuidedTraining, changes: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        dataclasses.replace(config, **changes)


def test_a_window_outside_the_grid_is_refused(config: SelfGuidedTraining) -> None:
    with pytest.raises(ConfigError, match=r"\[2000, 3000\].*training grid"):
        SelfGuided(with_prototypes(config, timesteps=(2000, 3000)))
