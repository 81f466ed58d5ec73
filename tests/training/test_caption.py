import pytest
import torch
import torch.nn.functional as F

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.registry import probes
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.training.caption import CaptionModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy_captions import CAPTIONS, CELL, D_FEATURES, Captioned, ToyEncoder, planted_map, word_vector

SMALL = {"vocabulary": 20, "n_resamples": 50}


def run(tmp_path, name="ridge", source=None, params=None, seed=0, encoder=None, **settings):
    source = source or Captioned()
    steps = {"max_epochs": 30, "learning_rate": 0.01} if name != "ridge" else {}
    config = TrainerConfig(**{"accelerator": "cpu", "enable_progress_bar": False, **steps, **settings})
    module = CaptionModule(
        name, probes("caption").load(name).Config(**SMALL, **(params or {})), cell=CELL, d_features=D_FEATURES,
        encoder=encoder or ToyEncoder(), settings=config, seed=seed,
    )  # fmt: skip
    with quiet():
        trainer = make_trainer(config, run_dir=tmp_path)
        if module.is_trained:
            trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def named(module, split="test"):
    return {record.name: record for record in module.records(split)}


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_a_planted_map_and_its_directions_are_recovered(tmp_path, name):
    module = run(tmp_path, name)
    r2 = named(module)["r2"]
    assert r2.value > 0.9 and r2.controls["constant"] == 0
    assert r2.controls["shuffled_captions"] < 0.1
    low, high = r2.detail["interval"]
    assert low < r2.value < high and r2.detail["n_groups"] == 20 and r2.detail["group_by"] == "family"
    assert r2.detail["differences"]["shuffled_captions"]["low"] > 0.5
    encode = ToyEncoder()
    ends = [[f"{colour} {animal}" for animal in ("cat", "dog", "owl")] for colour in ("red", "blue")]
    found = module.regressor.direction(*(encode(end) for end in ends))
    planted = (word_vector("red") - word_vector("blue")) @ planted_map()
    assert float(F.cosine_similarity(found.vector, planted, dim=0)) > (0.99 if name == "ridge" else 0.95)


@pytest.mark.slow
def test_captions_are_retrieved_in_both_directions(tmp_path):
    module = run(tmp_path, "contrastive")
    found = named(module)
    assert set(found) == {"caption_recall_1", "caption_recall_10", "image_recall_1", "image_recall_10"}
    for name in ("caption_recall_1", "image_recall_1"):
        record = found[name]
        assert record.value > 0.5 > record.controls["shuffled_captions"] + 0.2, record
        assert record.value > 3 * record.controls["chance"]
        assert record.value <= found[name.replace("_1", "_10")].value


def test_a_pure_noise_cell_has_no_r2(tmp_path):
    source = Captioned(noise=1e4)
    record = named(run(tmp_path, source=source))["r2"]
    assert abs(record.value) < 0.1 and record.detail["interval"][0] < 0.05


def test_the_closed_form_is_ridge_on_the_training_samples(tmp_path):
    from sklearn.linear_model import Ridge

    module = run(tmp_path)
    table, encode = Captioned().table("train"), ToyEncoder()
    x, y = encode(table.captions).double().numpy(), table.features[CELL].double().numpy()
    alpha = named(module)["r2"].detail["alpha"]
    fitted = Ridge(alpha=alpha * len(x)).fit((x - x.mean(0)) / x.std(0), y)
    other = encode(CAPTIONS[:7])
    expected = fitted.predict((other.double().numpy() - x.mean(0)) / x.std(0))
    torch.testing.assert_close(
        module.regressor.features_of(other), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["ridge", "contrastive"])
def test_batches_of_an_evaluation_do_not_matter(tmp_path, name):
    params = {"max_epochs": 2} if name == "contrastive" else {}
    module = run(tmp_path, name, **params)
    before = {record.name: (record.value, record.controls) for record in module.records("test")}
    source = Captioned(batch_size=7)
    with quiet():
        make_trainer(module.settings, run_dir=tmp_path).test(module, datamodule=source, verbose=False)
    after = {record.name: (record.value, record.controls) for record in module.records("test")}
    assert before == after


def test_a_closed_form_does_not_depend_on_batches(tmp_path):
    one, other = (run(tmp_path, source=Captioned(batch_size=size)) for size in (7, 200))
    torch.testing.assert_close(one.regressor.net.weight, other.regressor.net.weight, rtol=1e-5, atol=1e-6)


def test_each_caption_is_encoded_once_for_training(tmp_path):
    encoder, source = ToyEncoder(), Captioned()
    run(tmp_path, "mlp", source=source, encoder=encoder, max_epochs=2)
    n_train, n_val, n_test = (len(set(source.table(split).captions)) for split in ("train", "val", "test"))
    assert encoder.n_encoded == n_train + n_val + n_test  # although it is validated after each epoch


def test_mixed_precision_trains(tmp_path):
    plain, mixed = (run(tmp_path, "contrastive", max_epochs=3, precision=p) for p in ("32-true", "bf16-mixed"))
    for name, record in named(mixed).items():
        assert record.value == pytest.approx(named(plain)[name].value, abs=0.15)


def test_the_saved_map_is_that_of_the_captions(tmp_path):
    module = run(tmp_path)
    (folder,) = module.save(tmp_path / "probes")
    assert folder == tmp_path / "probes" / "caption" / "mid_block@t10.empty.mean"
    back, e = CaptionRegressor.from_pretrained(folder), ToyEncoder()(CAPTIONS[:3])
    assert back.features_of(e).equal(module.regressor.features_of(e)) and back.text_encoder == "toy"


class Altered(Captioned):
    """Captioned features, changed after they were made."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def table(self, split):
        table = super().table(split)
        self.change(table, split)
        return table


def without_captions(table, split):
    table.captions = [""] * len(table)


def one_without(table, split):
    table.captions[4] = "  "


def one_caption(table, split):
    table.captions = ["red cat"] * len(table)


def one_caption_of_val(table, split):
    if split == "val":
        one_caption(table, split)


def constant(table, split):
    table.features[CELL] = torch.ones_like(table.features[CELL])


def infinite(table, split):
    table.features[CELL][3, 0] = float("inf")


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        (without_captions, EmptyClass, "150 of 150 samples of split 'train'"),
        (one_without, EmptyClass, "1 of 150 .*'train/4'"),
        (one_caption, EmptyClass, "150 samples with one caption"),
        (one_caption_of_val, EmptyClass, "'val' has 60 samples with 1 "),
        (constant, EmptyClass, "all alike"),
        (infinite, NonFinite, "train/3"),
    ],
)
def test_bad_data_are_refused(tmp_path, change, error, facts):
    with pytest.raises(error, match=facts):
        run(tmp_path, source=Altered(change))


def test_fewer_groups_than_folds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="50 groups for 99 folds"):
        run(tmp_path, params={"folds": 99})


@pytest.mark.slow
def test_an_alignment_head_is_scored_by_both_inferences_and_needs_the_right_images(tmp_path):
    small = {"grid": 1, "width": 32, "blocks": 1, "ddim_steps": 3}
    module = run(tmp_path, "diffdis", params=small, seed=0)
    found = named(module)
    plain = {"caption_recall_1", "caption_recall_10", "image_recall_1", "image_recall_10"}
    assert set(found) == plain | {f"{name}_ddim" for name in plain}
    for name in ("caption_recall_1", "caption_recall_1_ddim"):
        record = found[name]
        assert record.value > 3 * record.controls["chance"], record
        assert record.controls["shuffled_captions"] < record.value / 2  # images of other captions: the leak test
    assert found["caption_recall_1"].controls["chance"] == found["caption_recall_1_ddim"].controls["chance"]
