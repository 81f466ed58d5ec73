"""Classifiers fitted in memory, without a Trainer: any head, tensors or numpy arrays."""

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, SchemaError
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.linear import LinearProbe


def data(n=300, d=6, n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, n_classes, (n,), generator=generator)
    centres = 2 * torch.randn(n_classes, d, generator=torch.Generator().manual_seed(9))
    return 40 + centres[label] + torch.randn(n, d, generator=generator), label


def test_a_notebook_needs_three_lines():
    (x, y), (x_test, y_test) = data(), data(seed=1)
    probe = LinearProbe().fit(x, y)
    assert probe.score(x_test, y_test) > 0.9
    assert float((probe.predict(x_test) == y_test).double().mean()) == probe.score(x_test, y_test)


@pytest.mark.parametrize("l2", [None, 0.03])
def test_fit_is_logistic_regression_of_scikit_learn(l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_test, _) = data(), data(seed=1)
    strength = 1.0 if l2 is None else 1 / (l2 * len(x))
    model = linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-10)
    reference = make_pipeline(StandardScaler(), model).fit(x.double().numpy(), y.numpy())
    probe = LinearProbe().fit(x.numpy(), y.numpy(), l2=l2)
    expected = reference.predict_proba(x_test.double().numpy())
    np.testing.assert_allclose(probe.logits(x_test).softmax(1).detach().numpy(), expected, atol=1e-4)
    assert probe.predict(x_test).tolist() == reference.predict(x_test.double().numpy()).tolist()


def test_fitting_again_gives_the_same_and_unlabelled_samples_are_left_out():
    x, y = data()
    one = LinearProbe().fit(x, y)
    more, labels = torch.cat([x, 1e3 + x[:9]]), torch.cat([y, torch.full((9,), -1)])
    again = one.weight.clone()
    assert one.fit(more, labels).weight.equal(again)
    assert one.score(more, labels) == one.score(x, y)


def test_data_that_cannot_be_fitted():
    x, y = data()
    with pytest.raises(EmptyClass, match="at least 2 classes, got 1"):
        LinearProbe().fit(x, torch.zeros_like(y))
    with pytest.raises(ConfigError, match="300 integers"):
        LinearProbe().fit(x, y.double())
    with pytest.raises(ConfigError, match=r"\(300,\)"):
        LinearProbe().fit(x[:, 0], y)
    with pytest.raises(ConfigError, match="label 2 .*n_classes=2"):
        LinearProbe().fit(x, y, n_classes=2)
    with pytest.raises(ConfigError, match="l2=-1"):
        LinearProbe().fit(x, y, l2=-1)
    with pytest.raises(ConfigError, match=r"fit\(x, y\)"):
        LinearProbe().predict(x)
    x[7, 2] = float("nan")
    with pytest.raises(NonFinite, match="row 7"):
        LinearProbe().fit(x, y)


def test_a_probe_comes_back_by_the_name_in_its_file(tmp_path):
    x, y = data()
    fitted = ClassifierProbe("linear").fit(x, y)
    fitted.save_pretrained(tmp_path, target="label", classes=("a", "b", "c"))
    for back in (ClassifierProbe.from_pretrained(tmp_path), LinearProbe.from_pretrained(tmp_path)):
        assert back.name == "linear" and back.logits(x).equal(fitted.logits(x))
    text = (tmp_path / "probe.json").read_text()
    (tmp_path / "probe.json").write_text(text.replace("probe/classifier/linear", "probe/classifier/other"))
    with pytest.raises(SchemaError, match="probe/classifier/other"):
        LinearProbe.from_pretrained(tmp_path)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0], [2.0, 3.0]], [0, 1], "features are not an array"),
        (None, [0, 1], "features are not an array"),
        ({"a": 1}, [0, 1], "features are not an array"),
        (np.array([[None], [1]], dtype=object), [0, 1], "features are not an array"),
        ([[1.0], [2.0]], ["cat", "dog"], "labels are not an array(.|\n)*class ids"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(x, y, message):
    with pytest.raises(ConfigError, match=message):
        LinearProbe().fit(x, y)


@pytest.mark.usefixtures("no_shape_checks")
def test_features_of_another_width_are_refused():
    probe = LinearProbe().fit(*data())
    for call in (probe.predict, lambda x: probe.score(x, torch.zeros(2, dtype=torch.long))):
        with pytest.raises(ConfigError, match="width 3 do not fit a classifier of width 6"):
            call(torch.zeros(2, 3))
