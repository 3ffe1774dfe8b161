"""A step of a segmenter, and when the validation cases are looked at."""

from types import SimpleNamespace

import pytest
import torch
from monai.engines.utils import default_prepare_batch
from monai.inferers import SimpleInferer
from monai.losses import DiceFocalLoss
from monai.networks.nets import DynUNet
from torch import nn

from scripts.runtime.errors import InputError
from scripts.training.segmentation import SegmentationUpdate, Validation, gradients_agree


def network(dimension, levels):
    torch.manual_seed(0)
    return DynUNet(dimension, 1, 1, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1), [8] * levels,
                   norm_name=("instance", {"affine": True}))  # fmt: skip


def step(autocast, dimension, side, levels):
    net = network(dimension, levels)
    engine = SimpleNamespace(
        state=SimpleNamespace(device="cpu", iteration=1), prepare_batch=default_prepare_batch, non_blocking=False,
        network=net, inferer=SimpleInferer(), loss_function=DiceFocalLoss(sigmoid=True, batch=True, gamma=0.0),
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
    )  # fmt: skip
    torch.manual_seed(1)
    image = torch.randn(2, 1, *[side] * dimension)
    batch = {"image": image, "label": (image > 1).float(), "synthetic": torch.tensor([True, False]),
             "transplanted": torch.tensor([False, False])}  # fmt: skip
    update = SegmentationUpdate(autocast)
    return update, update(engine, batch), torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("dimension, side", [(2, 32), (3, 16)])
def test_bfloat16_makes_the_same_step(dimension, side):
    _, full, expected = step(None, dimension, side, 3)
    update, half, found = step("bfloat16", dimension, side, 3)
    assert update.autocast_dtype == torch.bfloat16 and half["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert half["synthetic_share"] == 0.5 and half["transplanted_share"] == 0.0
    start = torch.cat([p.detach().flatten() for p in network(dimension, 3).parameters()])
    assert torch.nn.functional.cosine_similarity(expected - start, found - start, dim=0) > 0.98


class WrongInBfloat16(nn.Module):
    """A network whose gradient is right in float32 alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        right = self.weight * x
        return right - 2 * (right - right.detach()) if torch.is_autocast_enabled("cpu") else right


def test_wrong_gradients_are_seen():
    x, large = torch.rand(2, 1, 4, 4, 4), torch.rand(1, 1, 16, 16, 16)
    loss = nn.functional.binary_cross_entropy_with_logits
    assert not gradients_agree(WrongInBfloat16(), loss, x, x, torch.bfloat16)
    net, state = network(3, 3), torch.get_rng_state()
    assert gradients_agree(net, loss, large, large, torch.bfloat16)
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_gradients_are_not_trained_with(monkeypatch, caplog):
    monkeypatch.setattr("scripts.training.segmentation.gradients_agree", lambda *_: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    update, _, found = step("auto", 3, 12, 3)
    assert update.autocast_dtype is None and "float32" in caplog.text
    assert torch.equal(found, step(None, 3, 12, 3)[2])
    with pytest.raises(InputError, match="wrong"):
        step("bfloat16", 3, 12, 3)


def test_validation_at_its_interval_and_at_the_plateau():
    ran = []
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={}, key_metric_name="dice"))

    def run(epoch):
        ran.append(epoch)
        evaluator.state.metrics["dice"] = epoch / 10

    evaluator.run = run
    for interval, expected in ((0, [6, 8, 10]), (5, [5, 6, 8, 10])):
        ran.clear()
        validation = Validation(evaluator, [{"case": "a"}], 10, interval)
        for epoch in range(1, 11):
            validation(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        assert ran == expected and validation.plateau == {"0.6": 0.6, "0.8": 0.8, "1.0": 1.0}
    again = Validation(evaluator, [], 10, 0)
    again.load_state_dict(validation.state_dict())
    assert again.plateau == validation.plateau
