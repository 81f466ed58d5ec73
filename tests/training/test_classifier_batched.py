"""The heads of all cells trained together end as those trained one by one; a diverging run stops."""

import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import NonFinite
from diffprobe.core.registry import probes
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.classifier_batched import BatchedClassifierModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import CLASSES, STYLES, WIDTHS, Families

CLASSES_OF = {"label": CLASSES, "style": STYLES}


def trained(kind, name, folder, **settings):
    params = settings.pop("params", {})
    fixed = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=3, **settings)
    config = probes("classifier").load(name).Config(**({"hidden": 8} if name == "mlp" else {}), **params)
    module, source = kind(name, config, widths=WIDTHS, classes=CLASSES_OF, settings=fixed), Families()
    with quiet():
        trainer = make_trainer(fixed, run_dir=folder)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


@pytest.mark.parametrize(
    ("name", "params"),
    [("linear", {}), ("linear", {"class_weight": "balanced", "l2": 0.01}), ("mlp", {"label_fraction": 0.5}),
     ("batchnorm_linear", {})],
)  # fmt: skip
def test_heads_end_as_they_would_one_by_one(name, params, tmp_path):
    together, apart = (
        trained(kind, name, tmp_path / str(i), params=params)
        for i, kind in enumerate((BatchedClassifierModule, ClassifierModule))
    )
    assert together.state_dict().keys() == apart.state_dict().keys()
    for key, value in apart.state_dict().items():
        torch.testing.assert_close(together.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    for split in ("val", "test"):
        for ours, theirs in zip(together.records(split), apart.records(split), strict=True):
            ratios = [record.detail.pop("gradient_ratio", -1.0) for record in (ours, theirs)]
            assert ours == theirs and ratios[0] == pytest.approx(ratios[1], rel=1e-4)
            assert (ratios[0] < 0) == ("l2" in params)


def test_a_run_all_of_whose_heads_diverge_stops(tmp_path):
    with pytest.warns(UserWarning, match="became NaN or infinite"), pytest.raises(NonFinite, match="all heads"):
        trained(BatchedClassifierModule, "linear", tmp_path, params={"learning_rate": 1e37})
