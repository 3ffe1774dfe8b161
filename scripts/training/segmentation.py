"""One training step of a segmenter, for MONAI's supervised trainer."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import CommonKeys as Keys

from ..runtime.precision import autocast_dtype, casting
from .parallel import mean_terms
from .steps import descend


class Predictor(torch.nn.Module):
    """A segmenter as `SampleGrid` shows it: the images of training items with the masks that it predicts.

    Args:
        network: images (batch, channels, ...) -> logits (batch, labels, ...).
        num_image_channels: first channels of an item, which are the image.
    """

    def __init__(self, network: torch.nn.Module, num_image_channels: int):
        super().__init__()
        self.network, self.num_image_channels = network, num_image_channels

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Items (batch, channels + labels, ...) with their masks replaced by probabilities."""
        image = x[:, : self.num_image_channels]
        return torch.cat([image, torch.sigmoid(self.network(image))], 1)


class SegmentationUpdate:
    """Minimise the trainer's loss; returns it as a float, with the synthetic share of the batch.

    Args:
        autocast: see `autocast_dtype`.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.
    """

    def __init__(
        self, autocast: str | None = None, device: torch.device | str = "cpu", gradient_clip: float | None = None
    ):
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `image` (batch, channels, ...) in [0, 1] and `label` (batch, labels, ...) in {0, 1}."""
        device = engine.state.device
        image, label = engine.prepare_batch(batch, device, engine.non_blocking)
        engine.network.train()
        with casting(device, self.autocast_dtype):
            logits = engine.inferer(image, engine.network)
        loss = engine.loss_function(logits.float(), label)
        descend({"loss": loss}, engine.network, engine.optimizer, engine.state.iteration, self.gradient_clip)
        return mean_terms({Keys.LOSS: loss, "synthetic_share": batch["synthetic"].float().mean().to(device)})
