"""Training of the painter: windows, holes, the loss, the best weights; seeds decide."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.data.holes import FRAME
from scripts.data.lesion_crops import load_lesion_crops
from scripts.runtime.errors import InputError
from scripts.training.averaging import WeightAverage
from scripts.training.flow import FlowEvaluation, FlowUpdate, painting_inputs, velocity_loss

from ..sampling.toy_painter import make_painter


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    network, _, data = make_painter(tmp_path_factory.mktemp("painter"))
    return network, data


def stack(items):
    return torch.stack([item["image"] for item in items])


@pytest.mark.slow
def test_windows_are_of_lesions_and_of_healthy_places(toy):
    _, data = toy
    lesions = [item for item in data.training if data.has_lesion(item)]
    healthy = [item for item in data.training if not data.has_lesion(item)]
    assert len(lesions) > 12 and healthy and {item["case"] for item in data.training} <= set(data.cases.fold.train)
    assert {item["case"] for item in data.validation} <= set(data.cases.fold.val)
    for item in data.training:
        image, *masks, shape, inside = item["image"]
        assert item["image"].shape == (5, 24, 24) and shape.any() and inside[shape > 0].all()
        assert not image[inside == 0].any() and not any(mask[inside == 0].any() for mask in masks)
    assert data.geometry.spatial_size == (40, 36) and data.values.shape == (2, 1)
    with pytest.raises(InputError, match="lesion_labels"):
        load_lesion_crops(data.cases, [24, 24], lesion_labels=["liver"])
    with pytest.raises(InputError, match="spatial_size"):
        load_lesion_crops(data.cases, [8, 8])


@pytest.mark.parametrize("augment", [False, True])
def test_holes_lie_around_what_is_painted_over(toy, augment):
    _, data = toy
    items = data.training[:8]
    image, distance, hole = painting_inputs(stack(items), 2, data.steps, range(8), augment)
    again = painting_inputs(stack(items), 2, data.steps, range(8), augment)
    assert all(torch.equal(a, b) for a, b in zip((image, distance, hole), again, strict=True))
    assert not hole[:, :, :FRAME].any() and not hole[:, :, :, -FRAME:].any()
    for row, (seen, *masks, shape, _) in enumerate(stack(items)):
        mask = torch.stack(masks) > 0
        inner = torch.zeros(24, 24, dtype=torch.bool)
        inner[FRAME:-FRAME, FRAME:-FRAME] = True
        if not augment:
            assert torch.equal(image[row, 0], seen) and torch.equal(distance[row] < 0, mask)
            assert (hole[row, 0] > 0)[(shape > 0) & inner].all()
        lesion = (distance[row] < 0).any(0) & inner
        if (mask.any(0) & (shape > 0)).any():
            assert (hole[row, 0] > 0)[lesion].float().mean() > 0.9
    # each window is a function of its own seed, whoever it is computed with
    alone = painting_inputs(stack(items[3:4]), 2, data.steps, [3], augment)
    assert all(torch.allclose(a[3:4], b, atol=1e-6) for a, b in zip((image, distance, hole), alone, strict=True))


def test_turned_windows_keep_their_grain():
    """A painter that learns from smooth windows paints smooth lesions. Straight lines would leave 0.55 of noise."""
    windows = torch.ones(40, 4, 24, 24)
    windows[:, 0] = torch.rand(40, 24, 24, generator=torch.Generator().manual_seed(0))
    windows[:, 2] = 0
    windows[:, 2, 10:14, 10:14] = 1

    def grain(image):
        return image[:, 0, 8:16, 8:16].diff(dim=1).diff(dim=2).std(dim=(1, 2))

    image, _, _ = painting_inputs(windows, 1, [1, 1], range(40), True)
    kept = grain(image) / grain(windows)
    turned = kept[(kept - 1).abs() > 0.02]
    assert len(turned) > 10 and turned.mean() > 0.65
    assert image.min() >= 0 and image.max() <= windows[:, 0].max()


def test_the_loss_is_of_the_hole_alone(toy):
    network, data = toy
    image, distance, hole = painting_inputs(stack(data.training[:4]), 2, data.steps, range(4), False)
    noise, t = torch.randn(image.shape), torch.rand(4)
    network.velocity = lambda x, *_: image - noise + torch.where(hole > 0, 0.0, 9.0)
    assert float(velocity_loss(network, image, noise, t, distance, hole)) < 1e-10
    network.velocity = lambda x, *_: image - noise + 2
    assert float(velocity_loss(network, image, noise, t, distance, hole)) == pytest.approx(4, rel=1e-5)
    del network.velocity


def test_a_step_learns_and_seeds_decide(toy):
    network, data = toy
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch, results = {"image": stack(data.training[:4])}, []
    for _ in range(2):
        network.load_state_dict(before)
        generator = torch.Generator().manual_seed(5)
        average = WeightAverage(network)
        engine = SimpleNamespace(
            network=network,
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
            state=SimpleNamespace(iteration=1, device=torch.device("cpu")),
        )
        update = FlowUpdate(data.steps, generator, average)
        results.append([update(engine, batch)["loss"] for _ in range(3)])
        assert not torch.equal(next(iter(average.module.parameters())), next(iter(before.values())))
    assert results[0] == results[1] and np.isfinite(results[0]).all()
    evaluation = FlowEvaluation(data.steps, 0)
    whole = evaluation(engine, batch)["velocity_loss"]
    parts = []
    for number in range(4):
        engine.state.iteration = number + 1
        parts += evaluation(engine, {"image": batch["image"][number : number + 1]})["velocity_loss"]
    assert np.allclose(whole, parts, rtol=1e-5)  # whatever the batch
    network.load_state_dict(before)
