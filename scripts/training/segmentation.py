"""One training step of a segmenter, for MONAI's supervised trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.utils import CommonKeys as Keys

from ..runtime.precision import autocast_dtype, casting
from .parallel import mean_terms
from .steps import descend

PLATEAU = (0.6, 0.8, 1.0)  # parts of the training


class Predictor(torch.nn.Module):
    """A segmenter as `SampleGrid` shows it: the images of training items with the masks that it predicts.

    Args:
        network: images (batch, channels, ...) -> logits (batch, labels, ...).
        num_image_channels: first channels of an item, which are the image.
        normalise: from [0, 1] to what the network sees, the same for all items of the picture; or None.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        num_image_channels: int,
        normalise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__()
        self.network, self.num_image_channels, self.normalise = network, num_image_channels, normalise

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Items (batch, channels + labels, ...) with their masks replaced by probabilities."""
        image = x[:, : self.num_image_channels]
        seen = image if self.normalise is None else torch.stack([self.normalise(one.cpu()) for one in image])
        return torch.cat([image, torch.sigmoid(self.network(seen.to(image)))], 1)


class Validation:
    """Measure the Dice on the validation cases every few epochs, and at 60, 80 and 100 % of the training.

    The three show whether the training ended on a plateau: a comparison of arms that still rise says little. They
    are stored with the checkpoint, so that a resumed training has them all.

    Args:
        evaluator: MONAI's, with the metric.
        metric: its name.
        num_epochs: of the training.
        interval: epochs between other validations; 0: none.
    """

    def __init__(self, evaluator: Any, metric: str, num_epochs: int, interval: int):
        self.cases: Sequence[Any] = ()
        self.evaluator, self.metric, self.interval = evaluator, metric, interval
        self.points = {max(1, round(part * num_epochs)): str(part) for part in PLATEAU}
        self.plateau: dict[str, float] = {}

    def of(self, cases: Sequence[Any]) -> Validation:
        """Name the cases; where there are none, nothing is validated."""
        self.cases = cases
        return self

    def attach(self, engine: Any) -> None:
        """Act at the end of epochs."""
        if self.cases:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Validate, if it is time."""
        epoch = engine.state.epoch
        if epoch in self.points or (self.interval and epoch % self.interval == 0):
            self.evaluator.run(epoch)
            if epoch in self.points:
                self.plateau[self.points[epoch]] = float(self.evaluator.state.metrics[self.metric])

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs."""
        return dict(self.plateau)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.plateau.update(state)


class SegmentationUpdate:
    """Minimise the trainer's loss; returns it as a float, with the synthetic share of the batch.

    Convolutions in bfloat16 of a CPU, and all of tensor cores, are faster on maps whose channels lie together.

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
        self.laid_out = False

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `image` (batch, channels, ...) and `label` (batch, labels, ...) in {0, 1}."""
        device = engine.state.device
        image, label = engine.prepare_batch(batch, device, engine.non_blocking)
        engine.network.train()
        if self.autocast_dtype is not None and image.ndim == 4:
            if not self.laid_out:
                engine.network.to(memory_format=torch.channels_last)
                self.laid_out = True
            image = image.contiguous(memory_format=torch.channels_last)
        with casting(device, self.autocast_dtype):
            logits = engine.inferer(image, engine.network)
        loss = engine.loss_function(logits.float(), label)
        descend({"loss": loss}, engine.network, engine.optimizer, engine.state.iteration, self.gradient_clip)
        shares = {f"{name}_share": batch[name].float().mean().to(device) for name in ("synthetic", "transplanted")}
        return mean_terms({Keys.LOSS: loss, **shares})
