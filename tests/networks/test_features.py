"""Feature extractors: VGG16 from local files only, and the project's own, trained on the training slices."""

import hashlib
import logging
import os
import socket
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import alexnet, vgg16

from scripts.networks import features
from scripts.networks.features import (
    AlexNetFeatures,
    SegmentationFeatures,
    VGG16Features,
    feature_extractor,
    train_segmentation_features,
)
from scripts.runtime.errors import InputError


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights in the layout of torchvision's file; its large classifier is left out."""
    with torch.random.fork_rng(), mock.patch.object(nn.Linear, "reset_parameters"):
        torch.manual_seed(0)
        state = vgg16(weights=None, init_weights=False).state_dict()
    path = tmp_path_factory.mktemp("vgg") / "weights.pth"
    torch.save({key: value for key, value in state.items() if key.startswith("features.")}, path)
    return path


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A torch hub cache without files, and no network."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def slices(n, seed, size=32):
    """Noisy images (n, 2, size, size) of discs, bright in one channel and dark in the other, with a core.

    The masks (n, 2, size, size) are nested: the disc, and its core, which only the second channel shows. All
    lie in one corner, so that a flip of the image without its mask teaches the wrong place.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = 8 + 4 * torch.rand(n, 2, 1, 1, generator=generator)
    radius = 5 + 3 * torch.rand(n, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    disc, core = (distance < radius).float(), (distance < radius / 2).float()
    images = torch.stack([0.3 + 0.3 * disc, 0.6 - 0.2 * disc + 0.4 * core], dim=1)
    noise = 0.15 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 1), torch.stack([disc, core], dim=1)


@pytest.fixture(scope="module")
def trained():
    return train_segmentation_features(*slices(64, seed=1), steps=80, seed=3, channels=(8, 16))


def dice(extractor, images, masks):
    """Dice of each label over all slices."""
    with torch.no_grad():
        found = (extractor.segment(images) > 0).float()
    dims = (0, 2, 3)
    return 2 * (found * masks).sum(dims) / (found.sum(dims) + masks.sum(dims))


@pytest.mark.slow
def test_vgg_layers_are_the_relus_of_a_forward_by_hand(vgg_file):
    state = torch.load(vgg_file, weights_only=True)
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def conv(x, number):
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        return functional.conv2d(x, weight, bias, padding=1).clamp_min(0)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colour = (image.repeat(1, 3, 1, 1) - mean[:, None, None]) / std[:, None, None]
    relu1_1 = conv(colour, 0)
    relu2_1 = conv(functional.max_pool2d(conv(relu1_1, 2), 2), 5)
    relu3_1 = conv(functional.max_pool2d(conv(relu2_1, 7), 2), 10)
    relu4_2 = conv(conv(functional.max_pool2d(conv(conv(relu3_1, 12), 14), 2), 17), 19)
    maps = VGG16Features(vgg_file)(image)
    assert len(maps) == 4
    for got, expected in zip(maps, (relu1_1, relu2_1, relu3_1, relu4_2), strict=True):
        assert got.min() == 0 and got.max() > 0
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_vgg_takes_several_channels_one_after_the_other(vgg_file):
    extractor = VGG16Features(vgg_file, layers=(2, 9))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    apart = [extractor(images[:, c : c + 1]) for c in range(3)]
    for got, *expected in zip(extractor(images), *apart, strict=True):
        torch.testing.assert_close(got, torch.cat(expected, dim=1))


def test_vgg_is_named_after_its_file(vgg_file, empty_hub, monkeypatch):
    sha = hashlib.sha256(vgg_file.read_bytes()).hexdigest()[:8]
    assert VGG16Features(vgg_file).name == f"vgg16(layers=2,7,12,21,sha256={sha})"
    monkeypatch.setattr(features, "VGG16_FILE", f"vgg16-{sha}.pth")
    (empty_hub / f"vgg16-{sha}.pth").symlink_to(vgg_file)
    assert VGG16Features(layers=(2, 7)).name == f"vgg16-imagenet(layers=2,7,sha256={sha})"


def test_vgg_leaves_the_global_random_state(vgg_file):
    before = torch.get_rng_state()
    VGG16Features(vgg_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_vgg_name_follows_the_weights_through_a_checkpoint(vgg_file, tmp_path):
    other = {key: value + 1 for key, value in torch.load(vgg_file, weights_only=True).items()}
    torch.save(other, tmp_path / "other.pth")
    first, second = VGG16Features(vgg_file), VGG16Features(tmp_path / "other.pth")
    assert first.name != second.name
    second.load_state_dict(first.state_dict())
    assert first.name == second.name


def test_vgg_without_a_file_is_refused_and_nothing_is_downloaded(empty_hub, tmp_path):
    for weights in (None, tmp_path / "missing.pth", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            VGG16Features(weights)


@pytest.mark.parametrize("kind", ["text", "tensor", "empty", "shape", "nan"])
def test_vgg_refuses_a_file_that_does_not_fit(kind, vgg_file, tmp_path):
    state = torch.load(vgg_file, weights_only=True)
    path = tmp_path / "weights.pth"
    if kind == "text":
        path.write_text("not weights")
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        key = "features.7.weight"
        changed = {"empty": None, "shape": state[key][:1], "nan": state[key] * float("nan")}[kind]
        torch.save({**state, key: changed}, path)
    with pytest.raises(InputError, match="VGG16 weights .*weights.pth"):
        VGG16Features(path)


def test_vgg_runs_no_code_from_the_file(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Payload(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="unreadable"):
        VGG16Features(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layers", [(), (3,), (7, 2), (2, 2), (2, 33)])
def test_vgg_refuses_layers_that_are_no_relus(layers, vgg_file):
    with pytest.raises(InputError, match="VGG16 layers"):
        VGG16Features(vgg_file, layers)


@pytest.mark.slow
def test_alexnet_gives_the_five_relus_that_lpips_compares(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = alexnet(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    image = torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    hidden = (image.repeat(1, 3, 1, 1) - mean[:, None, None]) / std[:, None, None]
    expected = []
    with torch.no_grad():
        for module in network.features:
            hidden = module(hidden)
            if isinstance(module, nn.ReLU):
                expected.append(hidden.clone())
    extractor = AlexNetFeatures(tmp_path / "weights.pth")
    found = extractor(image)
    assert [x.shape[1] for x in found] == [64, 192, 384, 256, 256]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    sha = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()[:8]
    assert extractor.name == f"alexnet(layers=2,5,8,10,12,sha256={sha})"


def test_alexnet_refuses_what_is_no_alexnet(vgg_file, empty_hub):
    with pytest.raises(InputError, match="AlexNet weights .*: features.0.weight is a tensor of shape"):
        AlexNetFeatures(vgg_file)
    with pytest.raises(InputError, match="AlexNet weights .*no such file"):
        AlexNetFeatures()


@pytest.mark.slow
def test_extractors_stay_frozen_and_pass_gradients_to_the_images(vgg_file, trained):
    for extractor, channels in ((VGG16Features(vgg_file), 1), (trained, 2)):
        nn.Sequential(extractor).train()
        assert not any(module.training for module in extractor.modules())
        assert not any(parameter.requires_grad for parameter in extractor.parameters())
        images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        images.requires_grad_(True)
        before = {key: value.clone() for key, value in extractor.state_dict().items()}
        sum(found.sum() for found in extractor(images)).backward()
        assert images.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in extractor.parameters())
        assert all(torch.equal(value, before[key]) for key, value in extractor.state_dict().items())


@pytest.mark.slow
def test_extractors_work_under_autocast(vgg_file, trained):
    for extractor, channels in ((VGG16Features(vgg_file), 1), (trained, 2)):
        images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            low = extractor(images)
        for got, expected in zip(low, extractor(images), strict=True):
            assert (got.float() - expected).norm() < 0.05 * expected.norm()


def test_own_extractor_segments_slices_that_it_has_not_seen(trained):
    images, masks = slices(32, seed=2)
    untrained = SegmentationFeatures(2, 2, channels=(8, 16), seed=3)
    assert (dice(trained, images, masks) > 0.8).all()
    assert (dice(untrained, images, masks) < 0.6).all()


def test_own_extractor_normalises_with_the_statistics_of_its_slices(trained):
    images, _ = slices(64, seed=1)
    conv, norm = trained.encoder[0][:2]
    found = conv(images)
    torch.testing.assert_close(norm.running_mean, found.mean((0, 2, 3)), rtol=0.1, atol=0.05)
    torch.testing.assert_close(norm.running_var, found.var((0, 2, 3)), rtol=0.1, atol=0.0)


def test_own_extractor_takes_any_size(trained):
    image = torch.rand(1, 2, 19, 22, generator=torch.Generator().manual_seed(0))
    assert [tuple(found.shape[2:]) for found in trained(image)] == [(19, 22), (9, 11)]
    assert trained.segment(image).shape == (1, 2, 19, 22)


def test_own_extractor_is_a_function_of_its_seed_alone():
    data = slices(8, seed=1, size=16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    losses = []
    train = {"steps": 3, "channels": (4, 8), "batch_size": 4}
    first = train_segmentation_features(*data, seed=5, **train, progress=lambda *report: losses.append(report))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = train_segmentation_features(*data, seed=5, **train)
    third = train_segmentation_features(*data, seed=6, **train)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.head.weight, third.head.weight)
    assert [(step, steps) for step, steps, _ in losses] == [(1, 3), (2, 3), (3, 3)]


def test_own_extractor_and_its_name_survive_a_checkpoint(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "extractor.pt")
    again = SegmentationFeatures(2, 2, channels=(8, 16))
    assert again.name == "synthaug-segmentation-features(C=2,L=2,steps=0,seed=0)"
    again.load_state_dict(torch.load(tmp_path / "extractor.pt", weights_only=True))
    assert again.name == trained.name == "synthaug-segmentation-features(C=2,L=2,steps=80,seed=3)"
    images, _ = slices(2, seed=2)
    for got, expected in zip(again(images), trained(images), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:3], y), "images"),
        (lambda x, y: (x[:0], y[:0]), "images"),
        (lambda x, y: (x, y[..., :8]), "images"),
        (lambda x, y: (x[0], y[0]), "images"),
        (lambda x, y: (x * 2, y), "outside"),
        (lambda x, y: (x * float("nan"), y), "not finite"),
        (lambda x, y: (x, y * 0.5), "other than 0 and 1"),
        (lambda x, y: (x, y * 0), "without any foreground"),
    ],
)
def test_own_extractor_refuses_slices_that_it_cannot_learn_from(change, message):
    with pytest.raises(InputError, match=message):
        train_segmentation_features(*change(*slices(4, seed=1)), steps=1)


def test_the_chooser_takes_what_is_at_hand_and_logs_it(vgg_file, empty_hub, caplog):
    data = slices(4, seed=1, size=16)
    caplog.set_level(logging.INFO, logger="scripts.networks.features")
    own = "synthaug-segmentation-features(C=2,L=2,steps=1,seed=2)"
    assert feature_extractor(None, *data, steps=1, seed=2).name == own
    assert feature_extractor(str(vgg_file), *data).name.startswith("vgg16(")
    (empty_hub / features.VGG16_FILE).symlink_to(vgg_file)
    assert feature_extractor(None, *data).name.startswith("vgg16(")
    assert feature_extractor("own", *data, steps=1, seed=2).name == own
    logged = [record.getMessage() for record in caplog.records]
    assert [own in line for line in logged] == [True, False, False, True]
    with pytest.raises(InputError, match="no such file"):
        feature_extractor("missing.pth", *data, steps=1)
