"""The picture of a painter in training: real windows, and what it paints into their holes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..data.lesion_crops import LesionCrops
from ..networks.lesion_flow import LesionFlow
from ..runtime.settings import first_rank
from .flow import painting_inputs
from .tracking import log_file

COUNT = 8  # windows


class PaintedGrid:
    """Every few epochs and at the end: windows of held-out lesions, painted anew, and with healthy tissue.

    Written to `samples.png`, TensorBoard and, with tracking, MLflow. Training windows take the place of held-out ones
    where there are none; of volumes the plane with most lesion is shown.

    Args:
        data: what is learnt from.
        network: painter.
        log_dir: where the picture goes.
        interval: epochs between pictures.
        seed: of holes and noise, the same at every epoch, so that progress can be seen.
    """

    def __init__(self, data: LesionCrops, network: LesionFlow, log_dir: str | Path, interval: int, seed: int = 0):
        self.data, self.network, self.interval, self.seed = data, network, interval, seed
        self.path = Path(log_dir) / "samples.png"

    def attach(self, engine: Engine) -> None:
        """Act every `interval` epochs and at the end; on the first process."""
        if first_rank():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Draw the picture."""
        from torch.utils.tensorboard import SummaryWriter

        from ..report.figures import save_png
        from ..report.sheets import draw_sheet

        items = self.data.validation or self.data.training
        lesions = [number for number, item in enumerate(items) if self.data.has_lesion(item)]
        chosen = torch.stack([items[n]["image"] for n in lesions[:: max(1, len(lesions) // COUNT)][:COUNT]])
        seeds = range(self.seed, self.seed + len(chosen))
        image, distance, hole = painting_inputs(chosen, self.data.num_labels, self.data.steps, seeds, False)
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(self.seed))
        device = next(self.network.parameters()).device
        healthy = torch.where(hole > 0, distance.abs().clamp(min=1), distance)
        self.network.eval()
        painted = [
            self.network.paint(*(part.to(device) for part in (noise, image, wanted, hole))).float().cpu()
            for wanted in (distance, healthy)
        ]
        description, whose = self.data.cases.description, "held out" if self.data.validation else "training"
        rows = [
            (name, self._planes(x, hole), self._planes(self._labels(wanted), hole)[:, 0])
            for name, x, wanted in (
                (f"real ({whose})", image, distance),
                ("lesion painted", painted[0], distance),
                ("healthy painted", painted[1], healthy),
            )
        ]
        channels = list(description.channel_names.values())
        title = f"epoch {engine.state.epoch}"
        figure = draw_sheet(rows, description.painted, channel_names=channels, title=title)
        save_png(figure, self.path)
        with SummaryWriter(str(self.path.parent / "tensorboard")) as writer:
            writer.add_figure("samples", figure, engine.state.iteration)
        log_file(engine, self.path)

    def _labels(self, distance: Tensor) -> Tensor:
        maps = [self.data.cases.description.to_label_map((masks < 0).numpy()) for masks in distance]
        return torch.from_numpy(np.stack(maps))[:, None]

    def _planes(self, x: Tensor, hole: Tensor) -> np.ndarray:
        """Slices as they are; of volumes `(batch, channel, depth, height, width)` the plane with the largest hole."""
        if x.ndim == 4:
            return x.numpy()
        planes = hole.sum((1, 3, 4)).argmax(1)
        return torch.stack([volume[:, plane] for volume, plane in zip(x, planes, strict=True)]).numpy()
