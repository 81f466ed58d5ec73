"""kNN in memory: scikit-learn's classifier, votes by weight and class, ties, and what a file may hold."""

import pytest
import torch
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from diffprobe.core.errors import ConfigError, NonFinite, WeightsMismatch
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.knn import Config, KNNBank, KNNHead
from diffprobe.probes.serialization import save_probe


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (n,), generator=generator)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    return 40 + (centres[label] + torch.randn(n, 6, generator=generator)) * torch.arange(1, 7), label


def fitted(config, n=150):
    return ClassifierProbe("knn", config).fit(*data(n, 0))


@pytest.mark.parametrize("k", [1, 4, 20])  # of 4 votes many are equal
def test_uniform_euclidean_is_scikit_learns(k):
    (x, y), (x_test, _) = data(150, 0), data(90, 1)
    scaler = StandardScaler().fit(x.double().numpy())
    model = KNeighborsClassifier(n_neighbors=k, algorithm="brute").fit(scaler.transform(x.double().numpy()), y.numpy())
    z = scaler.transform(x_test.double().numpy())
    probe = fitted(Config(k=k, metric="euclidean", weights="uniform", class_weight="none"))
    assert probe.predict(x_test).tolist() == model.predict(z).tolist()
    expected = torch.tensor(model.predict_proba(z))
    assert torch.allclose(probe.logits(x_test).exp().double(), expected, atol=1e-6)


def test_the_defaults_are_dinos_votes_divided_by_the_size_of_each_class():
    (x, y), (x_test, _) = data(150, 0), data(40, 1)
    assert (Config().k, Config().metric, Config().temperature) == (20, "cosine", 0.07)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    unit = [torch.nn.functional.normalize((part.double() - mean) / std, dim=1) for part in (x, x_test)]
    similarity, row = (unit[1] @ unit[0].T).topk(20, dim=1)
    one_hot = torch.nn.functional.one_hot(y[row], 4)
    plain = (one_hot * (similarity / 0.07).exp()[:, :, None]).sum(1)
    for config, votes in ((Config(class_weight="none"), plain), (Config(), plain / y.bincount())):
        shares = fitted(config).logits(x_test).exp().double()
        assert torch.allclose(shares, votes / votes.sum(1, keepdim=True), atol=1e-5)


def test_euclidean_weights_are_those_of_cosine_on_the_unit_sphere():
    head, other = (KNNHead(Config(k=5, metric=metric), 16, 3) for metric in ("cosine", "euclidean"))
    x = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    label = torch.arange(40) % 3
    head.memorise(x, label)
    other.memorise(4 * x, label)  # a standardised sample has a norm of sqrt(d_in)
    assert torch.allclose(head(x[:9]), other(4 * x[:9]), atol=1e-4)


def test_a_query_far_from_all_samples_still_has_votes():
    probe = fitted(Config(metric="euclidean"))
    shares = probe.logits(torch.full((1, 6), 1e5)).exp()
    assert torch.isfinite(shares).all() and abs(float(shares.sum()) - 1) < 1e-5


def test_equal_votes_go_to_the_first_class_and_equal_distances_to_the_first_sample():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    head = KNNHead(Config(k=2, metric="euclidean", weights="uniform", class_weight="none"), 1, 3)
    head.memorise(x, torch.tensor([2, 0, 1, 0]))
    assert head(torch.tensor([[0.9]])).argmax(1).tolist() == [1]  # one vote for 2, one for 1
    head = KNNHead(Config(k=1, metric="euclidean"), 1, 3)
    head.memorise(x, torch.tensor([2, 0, 1, 0]))
    assert head(torch.tensor([[0.9], [-3.0]])).argmax(1).tolist() == [2, 0]


def test_balanced_votes_of_classes_of_different_sizes_tie_exactly():
    label = torch.tensor([0] * 49 + [1] * 7)
    head = KNNHead(Config(k=56, weights="uniform"), 2, 2)
    head.memorise(torch.randn(56, 2, generator=torch.Generator().manual_seed(0)), label)
    logits = head(torch.ones(1, 2))
    assert logits[0, 0] == logits[0, 1]


def test_a_bank_gives_what_its_heads_give_alone():
    (x, _), (x_test, _) = data(150, 0), data(30, 1)
    generator = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randint(low, 3, (150,), generator=generator) for low in (-1, 0, -1)])
    bank = KNNBank(Config(k=6), 6, [3, 3, 4])
    bank.standardise(x.double().mean(0), x.double().var(0))
    bank.memorise(x, labels)
    for i, logits in enumerate(bank(x_test)):
        probe = bank.head(i)
        assert logits.equal(probe.logits(x_test)) and logits.shape[1] == bank.n_classes[i]
        assert len(probe.head.labels) == int((labels[i] >= 0).sum())


def test_a_saved_probe_holds_the_training_set_and_gives_the_same(tmp_path):
    probe, x = fitted(Config(k=3)), data(30, 1)[0]
    probe.save_pretrained(tmp_path, classes=tuple("abcd"))
    back = ClassifierProbe.from_pretrained(tmp_path)
    assert back.name == "knn" and back.config == Config(k=3) and back.logits(x).equal(probe.logits(x))
    assert load_file(tmp_path / "probe.safetensors")["head.features"].shape == (150, 6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.labels", lambda t: t + 1, "labels from 1 to 4 for 4 classes"),
        ("head.labels", lambda t: t[:-1], "shapes"),
        ("head.labels", lambda t: t.float(), "torch.float32"),
        ("head.labels", lambda t: t.flip(0) * 0, "does not count"),
        ("head.features", lambda t: t[:, :5], "shapes"),
        ("head.features", lambda t: t * torch.nan, "NaN"),
        ("head.n_by_class", lambda t: t[:3], "n_classes is 4"),
        ("head.features", None, "features"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path, name, change, message):
    probe = fitted(Config(k=3))
    tensors = {key: value for key, value in probe.state_dict().items() if key != name}
    if change is not None:
        tensors[name] = change(probe.state_dict()[name])
    settings = {"params": {"k": 3}, "d_in": 6, "n_classes": 4}
    save_probe(tmp_path, kind="probe/classifier/knn", schema_version=2, settings=settings, tensors=tensors)
    with pytest.raises(WeightsMismatch, match=message):
        ClassifierProbe.from_pretrained(tmp_path)


def test_data_and_settings_that_cannot_be_used_are_refused():
    x, y = data(10, 0)
    with pytest.raises(ConfigError, match=r"k=20[\s\S]*10 training samples[\s\S]*k=10"):
        ClassifierProbe("knn").fit(x, y)
    with pytest.raises(ConfigError, match="l2=0.1"):
        ClassifierProbe("knn", Config(k=3)).fit(x, y, l2=0.1)
    with pytest.raises(ConfigError, match=r"fit\(x, y\)"):
        ClassifierProbe("knn", d_in=6, n_classes=4).predict(x)
    with pytest.raises(NonFinite, match="row 0"):
        fitted(Config()).predict(x * torch.nan)
    for settings in ({"k": 0}, {"temperature": 0.0}, {"weights": "uniform", "temperature": 0.1}):
        with pytest.raises(ConfigError, match=list(settings)[-1]):
            Config(**settings)
