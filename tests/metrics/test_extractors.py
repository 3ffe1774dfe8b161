"""Inception, AlexNet and VGG from local files: which they are, what is refused, and never a download."""

import socket
import urllib.request
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.models import alexnet, vgg16
from torchvision.models.inception import Inception3

from scripts.metrics.extractors import (
    INCEPTION_FID_FILES,
    INCEPTION_FILE,
    InceptionFeatures,
    pooled_features,
    pretrained_extractors,
)
from scripts.networks.features import ALEXNET_FILE, VGG16_FILE, SegmentationFeatures
from scripts.runtime.errors import InputError


@pytest.fixture(scope="module")
def inception():
    """InceptionV3 with random weights and statistics; its activations neither vanish nor explode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Inception3(aux_logits=False, init_weights=False).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """AlexNet and VGG16 with random values in the published layouts; their large classifiers are left out."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(), mock.patch.object(torch.nn.Linear, "reset_parameters"):
        torch.manual_seed(0)
        for name, network in (("alexnet", alexnet(weights=None)), ("vgg", vgg16(weights=None, init_weights=False))):
            features = {f"features.{key}": value for key, value in network.features.state_dict().items()}
            torch.save(features, folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def files(inception, small_files):
    """The same with two of Inception; of FID's own the classifier has 1008 rows."""
    state = inception.state_dict()
    torch.save(state, small_files / "torchvision.pth")
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, small_files / "fid.pth")
    return small_files


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A torch hub cache without files, and no network."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 1, 75, 75, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_torchvisions_network_gives_its_own_pooled_features(inception, files, image):
    extractor = InceptionFeatures(files / "torchvision.pth")
    resized = functional.interpolate(image, (299, 299), mode="bilinear", align_corners=False, antialias=True)
    kept = []
    hook = inception.avgpool.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        inception(2 * resized.expand(-1, 3, -1, -1) - 1)
    hook.remove()
    torch.testing.assert_close(extractor(image)[0].mean((2, 3)), kept[0].flatten(1))
    assert kept[0].std() > 0.01
    assert extractor.name.startswith("inception-v3-torchvision(sha256=")


@pytest.mark.slow
def test_the_network_of_fid_pools_as_it_was_defined(files, image):
    """Every pooling of a block by hand: averages without the padding, and a maximum in the last block."""
    extractor = InceptionFeatures(files / "fid.pth")
    assert extractor.name.startswith("inception-v3-fid(sha256=")
    seen = {}
    for name in ("Mixed_5b", "Mixed_6c", "Mixed_7b", "Mixed_7c"):
        block = getattr(extractor.blocks, name)
        block.register_forward_hook(lambda _m, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    extractor(image)
    for name, (x, output) in seen.items():
        block = getattr(extractor.blocks, name)
        if name == "Mixed_7c":
            pooled = functional.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        branch = block.branch_pool
        with torch.no_grad():
            expected = torch.relu(branch.bn(branch.conv(pooled)))
        torch.testing.assert_close(output[:, -expected.shape[1] :], expected)
    plain = InceptionFeatures(files / "torchvision.pth")
    assert not torch.allclose(plain(2 * image - 1)[0], extractor(image)[0], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "white"), [("fid", 127 / 128), ("torchvision", 1.0)])
def test_black_and_white_arrive_as_each_network_was_trained(file, white, files):
    extractor = InceptionFeatures(files / f"{file}.pth")
    seen = []
    extractor.blocks.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    extractor(torch.stack([torch.zeros(1, 20, 20), torch.ones(1, 20, 20)]))
    assert seen[0].shape == (2, 3, 299, 299)
    torch.testing.assert_close(seen[0].mean((1, 2, 3)), torch.tensor([-1.0, white]))


@pytest.mark.slow
def test_channels_of_an_image_are_seen_one_by_one(files, image):
    extractor = InceptionFeatures(files / "fid.pth")
    both = extractor(torch.cat([image, image.flip(2)], dim=1))[0]
    torch.testing.assert_close(both, torch.cat([extractor(image)[0], extractor(image.flip(2))[0]], dim=1))


@pytest.mark.slow
def test_inception_is_frozen_and_draws_nothing(files):
    before = torch.get_rng_state()
    extractor = InceptionFeatures(files / "fid.pth").train()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "other network", "shape", "nan", "no classifier"])
def test_a_file_that_does_not_fit_is_refused(kind, files, tmp_path):
    path = tmp_path / "weights.pth"
    state = torch.load(files / "fid.pth", weights_only=True)
    key = "Mixed_6c.branch7x7_1.conv.weight"
    changes = {"shape": {key: state[key][:1]}, "nan": {key: state[key] * float("nan")}, "no classifier": {}}
    if kind == "text":
        path.write_text("not weights")
    elif kind == "other network":
        path.symlink_to(files / "vgg.pth")
    else:
        state.update(changes[kind])
        if kind == "no classifier":
            del state["fc.bias"]
        torch.save(state, path)
    with pytest.raises(InputError, match="Inception weights .*weights.pth"):
        InceptionFeatures(path)


def test_absent_weights_are_left_out_and_nothing_is_downloaded(empty_hub, small_files, tmp_path):
    assert pretrained_extractors() == []
    with pytest.raises(InputError, match="no such file"):
        InceptionFeatures()
    for name in ("inception", "alexnet", "vgg"):
        with pytest.raises(InputError, match="no such file"):
            pretrained_extractors(**{name: tmp_path / "missing.pth"})
    with pytest.raises(InputError, match="AlexNet weights .*vgg.pth"):
        pretrained_extractors(alexnet=small_files / "vgg.pth")


@pytest.mark.slow
def test_what_lies_in_the_hub_cache_or_is_given_is_used(empty_hub, files):
    given = pretrained_extractors(files / "torchvision.pth", files / "alexnet.pth", files / "vgg.pth")
    kinds = ["inception-v3-torchvision", "alexnet", "vgg16"]
    assert [extractor.name.split("(")[0] for extractor in given] == kinds
    (empty_hub / INCEPTION_FILE).symlink_to(files / "torchvision.pth")
    assert [extractor.name.split("(")[0] for extractor in pretrained_extractors()] == kinds[:1]
    (empty_hub / INCEPTION_FID_FILES[1]).symlink_to(files / "fid.pth")  # FID's own comes first
    (empty_hub / ALEXNET_FILE).symlink_to(files / "alexnet.pth")
    (empty_hub / VGG16_FILE).symlink_to(files / "vgg.pth")
    found = [extractor.name.split("(")[0] for extractor in pretrained_extractors()]
    assert found == ["inception-v3-fid", *kinds[1:]]


def test_pooled_features_are_spatial_means_whatever_the_batches():
    extractor = SegmentationFeatures(2, 1, channels=(4, 8), seed=0)
    images = torch.rand(7, 2, 13, 11, generator=torch.Generator().manual_seed(0))
    found = pooled_features(extractor, images.split(3))
    assert found.shape == (7, 12) and found.dtype == np.float32
    expected = torch.cat([x.flatten(2).mean(2) for x in extractor(images)], dim=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
