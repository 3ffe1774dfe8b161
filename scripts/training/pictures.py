"""Pictures of what a network makes: people would rather look than read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from ..data.training_set import TrainingSet
from ..runtime.settings import first_rank
from .tracking import log_file


class SampleGrid:
    """A picture of real slices, their reconstructions, and samples, every few epochs and at the end.

    Written to `samples.png`, TensorBoard and, with tracking, MLflow: people would rather look than read. Volumes
    are shown by one slice each: the one with the largest mask, or the middle one.

    Args:
        data: what is learnt from.
        network: module; its `reconstruct` and `predict`, (batch, channels + labels, ...) -> the same, and its
            `latent_shape` with `forward`, make the rows; a row whose method it has not is left out.
        log_dir: where the picture goes.
        interval: epochs between pictures.
        seed: of the samples' noise.
        sample: makes the samples from noise `(batch, *latent_shape)`; the network itself unless given.
    """

    def __init__(
        self,
        data: TrainingSet,
        network: Any,
        log_dir: str | Path,
        interval: int,
        seed: int = 0,
        sample: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.data, self.network, self.interval, self.seed = data, network, interval, seed
        self.sample = network if sample is None else sample
        self.path = Path(log_dir) / "samples.png"

    def attach(self, engine: Engine) -> None:
        """Act every `interval` epochs and at the end; on the first process."""
        if first_rank():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Draw the picture; the noise is the same at every epoch, so that progress can be seen."""
        from torch.utils.tensorboard import SummaryWriter

        from ..report.figures import save_png
        from ..report.sheets import draw_sheet
        from ..sampling.sampler import latent_noise

        description, channels = self.data.cases.description, self.data.num_image_channels
        training = self.data.training
        own = [i for i, item in enumerate(training) if not item.get("copy")]
        marked = [i for i in own if training[i]["image"][channels:].any()]
        # Volumes are many slices each: fewer of them, one at a time.
        count, at_once = (8, 8) if training[0]["image"].ndim == 3 else (4, 1)
        real = torch.stack([training[i]["image"] for i in marked[:: max(1, len(marked) // count)][:count]])
        device = next(self.network.parameters()).device

        def in_passes(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return torch.cat([function(part.to(device)).float().cpu() for part in x.split(at_once)])

        self.network.eval()
        shown = [("real (training)", self._planes(real, real))]
        for method, name in (("reconstruct", "reconstruction"), ("predict", "prediction")):
            if hasattr(self.network, method):
                shown.append((name, self._planes(in_passes(getattr(self.network, method), real), real)))
        if hasattr(self.network, "latent_shape"):
            noise = torch.stack([latent_noise(self.network.latent_shape, self.seed, i) for i in range(count)])
            sampled = in_passes(self.sample, noise)
            shown.append(("sample", self._planes(sampled, sampled)))
        rows = [
            (name, x[:, :channels], np.stack([description.to_label_map(masks) for masks in x[:, channels:]]))
            for name, x in shown
        ]
        figure = draw_sheet(
            rows,
            description.painted,
            channel_names=list(description.channel_names.values()),
            title=f"epoch {engine.state.epoch}",
        )
        save_png(figure, self.path)
        with SummaryWriter(str(self.path.parent / "tensorboard")) as writer:
            writer.add_figure("samples", figure, engine.state.iteration)
        log_file(engine, self.path)

    def _planes(self, x: torch.Tensor, by: torch.Tensor) -> np.ndarray:
        """Slices as they are; of volumes `(batch, channel, height, width, depth)` the one with most mask in `by`."""
        if x.ndim == 4:
            return x.numpy()
        areas = (by[:, self.data.num_image_channels :] >= 0.5).any(1).sum((1, 2))
        areas[:, areas.shape[1] // 2] += (areas.sum(1) == 0).to(areas)
        return torch.stack([volume[..., index] for volume, index in zip(x, areas.argmax(1), strict=True)]).numpy()
