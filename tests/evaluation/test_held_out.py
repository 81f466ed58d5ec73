import pytest
import torch

from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import EmptyClass, UnknownName
from diffprobe.evaluation.held_out import encode_split, group_of
from diffprobe.features.request import Request


class Network:
    """Encodes an image as its mean colour."""

    def encode_images(self, images):
        return images.mean((2, 3), keepdim=True)


@pytest.fixture
def request_of(tiny_sd, tiny_shards):
    def make(**features):
        data = DataConfig(path=str(tiny_shards), batch_size=3)
        taps = FeaturesConfig(taps=("mid_block",), timesteps=(20,), **features)
        return Request(BackboneConfig(path=str(tiny_sd)), data, taps)

    return make


def test_samples_are_in_shard_order_with_inputs_and_groups(request_of):
    request = request_of(condition="caption", unconditional=True)
    found = encode_split(request, Network(), "train", "style", limit=None)
    assert set(found.of_condition) == {"caption", "empty"} and len(found) == 16
    captioned, empty = found.of_condition["caption"], found.of_condition["empty"]
    assert captioned.latents is empty.latents and captioned.latents.shape == (16, 3, 1, 1)
    assert empty.inputs == [""] * 16 and all("emoji" in caption for caption in captioned.inputs)
    classes = request.shard_set.classes
    assert [classes[label] in text for label, text in zip(found.labels, captioned.inputs, strict=True)] == [True] * 16
    styles = request.shard_set.attributes["style"]
    assert [styles[value] for value in found.groups] == [caption.split(" ")[0] for caption in captioned.inputs]


def test_the_first_samples_are_those_of_the_whole_split(request_of):
    request = request_of()
    few, all_of = (encode_split(request, Network(), "train", "sample", limit=limit) for limit in (4, None))
    assert few.of_condition["empty"].keys == all_of.of_condition["empty"].keys[:4] == few.groups
    assert torch.equal(few.of_condition["empty"].latents, all_of.of_condition["empty"].latents[:4])


def test_groups_are_those_that_exist(request_of):
    shard_set = request_of().shard_set
    assert group_of(shard_set, None) == "sample" and group_of(shard_set, "colour") == "colour"
    with pytest.raises(UnknownName, match=r"group_attribute 'color'(.|\n)*colour"):
        group_of(shard_set, "color")


def test_a_split_without_samples_is_refused(request_of, monkeypatch):
    monkeypatch.setattr("diffprobe.shards.stream.make_loader", lambda *args: [])
    with pytest.raises(EmptyClass, match="split 'test' of"):
        encode_split(request_of(), Network(), "test", "sample", limit=None)
