"""One training step of a segmenter, for MONAI's supervised trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from ignite.engine import Events
from monai.handlers import LrScheduleHandler
from monai.utils import CommonKeys as Keys
from nnunet_plugin.precision import memory_format

from ..runtime.errors import InputError
from ..runtime.precision import autocast_dtype, casting
from ..segmentation.model_space import ModelSpace
from ..segmentation.normalisation import Normalise
from ..segmentation.trained import earlier_training
from .handlers import TrainingHandlers
from .parallel import mean_terms
from .record import TrainingRecord
from .steps import descend

logger = logging.getLogger(__name__)

PLATEAU = (0.6, 0.8, 1.0)  # parts of the training
LEAST_COSINE = 0.9  # between a gradient in bfloat16 and in float32; right ones have more than 0.99, wrong ones 0


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
        evaluator: MONAI's, whose key metric it is.
        cases: that it runs over; where there are none, nothing is validated.
        num_epochs: of the training.
        interval: epochs between other validations; 0: none.
    """

    def __init__(self, evaluator: Any, cases: Sequence[Any], num_epochs: int, interval: int):
        self.evaluator, self.cases, self.interval = evaluator, cases, interval
        self.points = {max(1, round(part * num_epochs)): str(part) for part in PLATEAU}
        self.plateau: dict[str, float] = {}

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
                state = self.evaluator.state
                self.plateau[self.points[epoch]] = float(state.metrics[state.key_metric_name])

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs."""
        return dict(self.plateau)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.plateau.update(state)


class SegmentationHandlers(TrainingHandlers):
    """Those of a segmenter: its validation and its schedule, pictures of what it predicts, and the record's facts.

    Args:
        record: of the training.
        network: images (batch, channels, ...) -> logits (batch, labels, ...).
        optimizer, lr_scheduler: of its weights; a step of the schedule is an epoch.
        validator, cases, num_epochs, val_interval: see `Validation`.
        space: which the network knows.
        normalise: of the training items.
        listed: learn from a list of files, beginning with the weights in the folder, which the record then describes;
            a checkpoint there is not gone on from.
        save_interval, grid_interval: see `TrainingHandlers`.
    """

    def __init__(
        self,
        record: TrainingRecord,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        validator: Any,
        cases: Sequence[Any],
        num_epochs: int,
        space: ModelSpace,
        normalise: Normalise,
        listed: bool = False,
        val_interval: int = 0,
        save_interval: int = 1,
        grid_interval: int = 1,
    ):
        validation = Validation(validator, cases, num_epochs, val_interval)
        states = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "validation": validation}
        notes = {
            "plans": space.plans,
            "axes": space.axes,
            "plateau": validation.plateau,
            "started_from": earlier_training(record.ckpt_dir) if listed else None,
        }
        super().__init__(
            record,
            states,
            torch.default_generator,
            shown=Predictor(network, record.data.num_image_channels, normalise.common),
            save_interval=save_interval,
            grid_interval=grid_interval,
            more=[LrScheduleHandler(lr_scheduler, print_lr=False), validation],
            notes=notes,
            resume=not listed,
        )


class SegmentationUpdate:
    """Minimise the trainer's loss; returns it as a float, with the synthetic share of the batch.

    Before the first step in bfloat16 on volumes on a CPU its gradient is compared with that in float32: those of
    torch's 3D convolutions are wrong there, often finite, on maps of 2 x 2 and smaller.

    Args:
        autocast: see `autocast_dtype`; "auto" is also float32 where the gradients in bfloat16 are wrong.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.
    """

    def __init__(
        self, autocast: str | None = None, device: torch.device | str = "cpu", gradient_clip: float | None = None
    ):
        self.autocast, self.autocast_dtype = autocast, autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip
        self.prepared = False

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `image` (batch, channels, ...) and `label` (batch, labels, ...) in {0, 1}."""
        device = engine.state.device
        image, label = engine.prepare_batch(batch, device, engine.non_blocking)
        engine.network.train()
        if not self.prepared:
            self._prepare(engine, image, label)
        if self.autocast_dtype is not None:
            image = image.contiguous(memory_format=memory_format(image.ndim - 2, device))
        with casting(device, self.autocast_dtype):
            logits = engine.inferer(image, engine.network)
        loss = engine.loss_function(logits.float(), label)
        descend({"loss": loss}, engine.network, engine.optimizer, engine.state.iteration, self.gradient_clip)
        shares = {f"{name}_share": batch[name].float().mean().to(device) for name in ("synthetic", "transplanted")}
        return mean_terms({Keys.LOSS: loss, **shares})

    def _prepare(self, engine: Any, image: torch.Tensor, label: torch.Tensor) -> None:
        """Before the first step: whether bfloat16 can be used, and how the weights lie in memory."""
        self.prepared = True
        if self.autocast_dtype is not None and image.ndim == 5 and image.device.type == "cpu":
            if not gradients_agree(engine.network, engine.loss_function, image, label, self.autocast_dtype):
                if self.autocast != "auto":
                    raise InputError(
                        f"autocast {self.autocast!r}, whose gradients are wrong here (torch {torch.__version__}, CPU)",
                        "'auto' or null for this network and spatial_size",
                        "set autocast, or a spatial_size whose smallest map is 3 x 3 or larger",
                    )
                logger.warning("training in float32: the gradients in bfloat16 are wrong for this network and size")
                self.autocast_dtype = None
        if self.autocast_dtype is not None:
            engine.network.to(memory_format=memory_format(image.ndim - 2, image.device))


def gradients_agree(
    network: torch.nn.Module, loss: Callable, image: torch.Tensor, label: torch.Tensor, dtype: torch.dtype
) -> bool:
    """Whether the gradient in `dtype` points where that in float32 does (cosine of 0.9 and more).

    Looks at a copy of the network, and leaves the random numbers as they were.
    """
    found = []
    for kind in (dtype, None):
        copied = deepcopy(network)
        if kind is not None:
            copied.to(memory_format=memory_format(image.ndim - 2, image.device))
        with torch.random.fork_rng(devices=[]):
            with torch.autocast(image.device.type, kind or dtype, enabled=kind is not None):
                logits = copied(image)
            loss(logits.float(), label).backward()
        found.append(torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None]))
    return bool(torch.nn.functional.cosine_similarity(found[0], found[1], dim=0) >= LEAST_COSINE)
