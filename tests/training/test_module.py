import re

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite, RunFailed
from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.classifier.linear import Config
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.module import check_finite_loss, vectors


def batch(x):
    return FeatureBatch({"c": x}, [f"k{i}" for i in range(len(x))], torch.zeros(len(x), dtype=torch.long), {})


def test_maps_are_refused_by_probes_of_vectors():
    for shape in ((3, 4, 4), (5, 3)):  # a map; tokens, or draws side by side
        with pytest.raises(ConfigError, match=f"shape {re.escape(str(shape))}") as caught:
            vectors(batch(torch.zeros(2, *shape)), "c")
        assert "features.pool=none" in str(caught.value) and "features.keep_draws=false" in str(caught.value)


def test_a_loss_that_is_no_number_names_the_sample():
    x = torch.zeros(3, 2)
    with pytest.raises(NonFinite, match="nan on finite features"):
        check_finite_loss(torch.tensor(float("nan")), batch(x), ["c"])
    x[1, 0] = float("inf")
    with pytest.raises(NonFinite, match="the first is 'k1'"):
        check_finite_loss(torch.tensor(float("nan")), batch(x), ["c"])
    check_finite_loss(torch.tensor(1.0), batch(x), ["c"])


def test_a_bare_loader_is_refused():
    classes = {"label": "ab"}
    module = ClassifierModule("linear", Config(), widths={"c": 2}, classes=classes, settings=TrainerConfig())
    trainer = lightning.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    with pytest.raises(RunFailed, match="needs a DataModule"):
        trainer.fit(module, train_dataloaders=DataLoader(torch.zeros(4, 2)))
