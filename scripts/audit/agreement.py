"""Whether a mask is where a segmenter that never saw a sample of the pool finds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import InputError
from .items import AuditData, Items, Track
from .thresholds import Check

BATCH_VOXELS, LARGEST_BATCH = 16 * 64 * 64, 16
BINS, ITEMS_PER_BIN = 3, 50  # how finely the threshold follows the size, and how many real items that takes
_DEPTH = 3  # times that the U-Net halves the grid


@dataclass(frozen=True)
class SegmenterSettings:
    """How the segmenters are trained.

    Attributes:
        folds: how many there are; each trains without the real patients of one fold.
        steps: training steps of each; None for 400 on slices and 150 on volumes, minutes on a CPU at 64 x 64 (x 32).
        seed: of the folds, the weights, the batches and their augmentation.

    Raises:
        InputError: steps that are no whole number of at least 1.
    """

    folds: int = 3
    steps: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise InputError(
                f"segmenter_steps {self.steps!r}", "a whole number of at least 1", "leave it out for the default"
            )


@dataclass(frozen=True)
class Agreement:
    """The check, and who was trained on what.

    Attributes:
        check: Dice of mask and prediction.
        record: of the segmenters, for `audit.json`.
    """

    check: Check
    record: dict


def find_agreement(
    audit: AuditData, levels: dict[str, float], settings: SegmenterSettings, device: torch.device, track: Track
) -> Agreement:
    """Dice of every mask with the prediction of a segmenter that has not seen its item.

    Segmenter k is trained on the training cases of the other folds, and on no sample: a pool cannot teach it its own
    mistakes. It judges the training cases of fold k, every third held-out case and every third sample (for three
    folds), so that a sample is judged as a patient is whom the segmenter meets for the first time. Small
    structures get lower Dice, so the threshold depends on the size of mask and prediction together.
    """
    training = ~audit.held_out
    patients = np.random.default_rng(settings.seed).permutation(np.unique(audit.real.groups[training]))
    folds = min(settings.folds, len(patients))
    others = [group for group in np.unique(audit.real.groups[~training])]
    fold_of = {group: i % folds for i, group in enumerate([*patients, *others])}
    real_fold = np.array([fold_of[group] for group in audit.real.groups])
    sample_fold = np.arange(len(audit.samples)) % folds
    real, samples = np.zeros((2, len(real_fold))), np.zeros((2, len(sample_fold)))
    steps = settings.steps or (400 if audit.real.images.ndim == 4 else 150)
    bar = iter(track(list(range(folds * steps)), "training segmenters"))
    batch_size = batch_size_of(audit.real)
    for fold in range(folds):
        learnt = audit.real.subset(training & (real_fold != fold))
        network = train_segmenter(learnt, steps, batch_size, settings.seed + fold, device, bar)
        for table, items, chosen in (
            (real, audit.real, real_fold == fold),
            (samples, audit.samples, sample_fold == fold),
        ):
            if chosen.any():
                table[:, chosen] = agreement_scores(network, items.subset(chosen), batch_size, device)
    next(bar, None)  # the bar ends
    seen = audit.judged
    whole = audit.samples.foreground.flatten(1).any(dim=1).numpy()
    edges = np.quantile(real[1, seen], np.linspace(0, 1, int(np.clip(seen.sum() // ITEMS_PER_BIN, 1, BINS)) + 1)[1:-1])
    check = Check(
        "agreement", "Dice of the mask with an independent segmentation:", True, levels["agreement"],
        np.where(seen, real[0], np.nan), np.where(whole, samples[0], np.nan), audit.real.groups, audit.held_out,
        np.searchsorted(edges, real[1]), np.searchsorted(edges, samples[1]),
    )  # fmt: skip
    record = {
        "network": "monai UNet", "folds": folds, "steps": steps, "batch_size": batch_size,
        "trained_on": "real training cases of the other folds; no sample, no held-out case",
        "judges": {
            str(fold): [str(group) for group in fold_of if fold_of[group] == fold]
            + [f"samples {fold}, {fold + folds}, {fold + 2 * folds}, ... of the pool"]
            for fold in range(folds)
        },
        "score": "Dice at the threshold of the prediction that fits the mask best, mean over labels that mask or "
        "prediction (above 1/2) holds",
        "bins": {"by": "voxels of mask and prediction together, on the generator's grid", "edges": edges.tolist()},
        "median_dice": {
            name: float(np.median(dice)) if len(dice) else None
            for name, dice in (("real", real[0, seen]), ("pool", samples[0, whole]))
        },
    }  # fmt: skip
    return Agreement(check, record)


def batch_size_of(items: Items) -> int:
    """Items of a training step: as many voxels whatever the grid, but two and more, and 16 at most."""
    return max(2, min(LARGEST_BATCH, BATCH_VOXELS // items.images[0, 0].numel()))


def train_segmenter(
    items: Items, steps: int, batch_size: int, seed: int, device: torch.device, bar: Iterator
) -> nn.Module:
    """A small U-Net, trained on augmented items; `bar` is advanced by each step."""
    dimension = items.images.ndim - 2
    widths = (16, 32, 64, 128) if dimension == 2 else (8, 16, 32, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Batch and not instance normalisation: how bright a tumour is must stay visible.
        network = UNet(
            dimension, items.images.shape[1], items.masks.shape[1], widths, (2,) * _DEPTH, num_res_units=2, norm="BATCH"
        )
    layout = torch.channels_last if dimension == 2 else torch.channels_last_3d
    network = network.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(2, steps))
    dice = DiceLoss(sigmoid=True, batch=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in zip(range(steps), bar, strict=False):
        chosen = torch.randint(len(items), (batch_size,), generator=generator)
        images, masks = augment(items.images[chosen].float(), items.masks[chosen].float(), generator)
        logits = predict_logits(network, images.to(device))
        masks = masks.to(device)
        loss = dice(logits, masks) + functional.binary_cross_entropy_with_logits(logits, masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn (in the plane), scale, shift and mirror each pair, and change the image's contrast and noise."""
    count, dimension = len(images), images.ndim - 2

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator)

    angle, scale = draw(-0.35, 0.35), draw(0.8, 1.25)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    # Coordinates come last axis first: in volumes (depth, width, height), in slices (width, height).
    matrix = torch.zeros(count, dimension, dimension + 1)
    width, height = dimension - 2, dimension - 1
    matrix[:, 0, 0] = scale
    matrix[:, width, width], matrix[:, width, height] = scale * angle.cos() * mirror, -scale * angle.sin() * mirror
    matrix[:, height, width], matrix[:, height, height] = scale * angle.sin(), scale * angle.cos()
    matrix[:, :, dimension] = draw(-0.1, 0.1, dimension)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    masks = (functional.grid_sample(masks, grid, align_corners=False) > 0.5).float()
    images = images.clamp(min=0) ** draw(0.7, 1.4, *[1] * (dimension + 1))
    return images + 0.02 * torch.randn(images.shape, generator=generator), masks


def predict_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits on grids of any size, which the U-Net wants as multiples of 8."""
    sizes = images.shape[2:]
    unit = 2**_DEPTH
    padding = [side for size in reversed(sizes) for side in (0, -size % unit)]
    layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    padded = functional.pad(images, padding, mode="replicate").contiguous(memory_format=layout)
    return network(padded)[(..., *(slice(0, size) for size in sizes))]


@torch.no_grad()
def agreement_scores(network: nn.Module, items: Items, batch_size: int, device: torch.device) -> np.ndarray:
    """Best Dice, and voxels of mask and prediction together: (2, items)."""
    rows = []
    parts: Iterable = zip(items.images.split(batch_size), items.masks.split(batch_size), strict=True)
    for images, masks in parts:
        logits = predict_logits(network, images.float().to(device)).cpu()
        together = (masks | (logits > 0)).any(dim=1).flatten(1).sum(dim=1)
        rows.append(torch.stack([best_dice(logits, masks), together.float()]))
    return torch.cat(rows, dim=1).numpy()


def best_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over labels of the Dice at the threshold where prediction and mask agree best, (items,).

    A label counts where the mask holds it or the prediction (logit above 0) does; without any, Dice is 1: both say
    that there is nothing. A label that the mask lacks and the prediction holds has Dice 0.

    Args:
        logits: (items, labels, *grid).
        masks: (items, labels, *grid) bool.
    """
    predicted, truth = logits.flatten(2), masks.flatten(2)
    order = predicted.argsort(dim=2, descending=True, stable=True)
    hits = truth.gather(2, order).float().cumsum(dim=2)
    size = truth.sum(dim=2, keepdim=True)
    chosen = torch.arange(1, truth.shape[2] + 1)  # voxels above the threshold
    dice = 2 * hits / (chosen + size)
    ordered = predicted.gather(2, order)
    dice[..., :-1][ordered[..., :-1] == ordered[..., 1:]] = 0  # no threshold lies between equal values
    dice = dice.amax(dim=2)
    counts = (size[..., 0] > 0) | (predicted > 0).any(dim=2)
    return torch.where(counts.any(dim=1), (dice * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1), 1.0)
