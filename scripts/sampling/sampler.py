"""What the samplers of all families share: noise, passes, the way back to the data's space, and rejection."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from ..data.description import DatasetDescription
from ..data.geometry import CUBIC, geometry_from_record
from ..data.provenance import read_provenance, refuse_other_network
from ..data.scaling import Scaling
from ..networks.whole import read_weights
from ..runtime.errors import InputError
from ..runtime.files import read_record
from ..runtime.precision import autocast_dtype

logger = logging.getLogger(__name__)

# A generator that makes fewer than one usable sample in this many is not sampled on and on.
MAX_CANDIDATES_PER_SAMPLE = 50
FIELDS: dict[str, type | tuple[type, ...]] = {  # of the record, beside what says whose it is
    "description.name": str, "description.channel_names": dict, "description.labels": dict, "scaling.low": list,
    "scaling.high": list, "geometry.spatial_size": list, "geometry.field_of_view": list, "space.kind": str,
    "network": dict,
}  # fmt: skip


def latent_noise(shape: Sequence[int], seed: int, index: int) -> torch.Tensor:
    """Standard normal noise of sample `index`: a function of (seed, index) alone, on the CPU, float32."""
    state = np.random.SeedSequence([seed, index]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
    return torch.randn(tuple(shape), generator=generator)


class Sampler:
    """Draw image and label pairs from a trained generator; a family says in `_generate` how.

    Candidates are numbered from 0, and each is a function of (generator, seed, number, settings) alone: they are made
    in passes of `samples_per_pass` whose borders are multiples of it, always whole and with the same number of
    threads, because kernels round differently for other batch sizes and other numbers of threads. Candidates whose
    mask has fewer than `min_foreground` voxels are thrown away (Kebaili et al. 2024, as their code does).

    Args:
        network: module that the family's `_generate` uses.
        checkpoint: `model.pt`, a state dict.
        provenance: `provenance.json` beside it.
        device: where to compute.
        min_foreground: voxels of foreground in the sample's own space that it must have.
        samples_per_pass: how many candidates the network makes at once.
        autocast: see `scripts.runtime.precision.autocast_dtype`.
        compile: compile the network with `torch.compile`; pays for large networks and many samples.
        threads: threads on the CPU; a pool that has to be made faster is shared by several processes instead.
        inferer: what calls the network; MONAI's SimpleInferer unless given.
        arguments: of the network, which have to be those that the checkpoint was trained with; None: not compared.

    Attributes:
        provenance: record of the generator.
        description: channels and labels of the data set.
        dimension: 2 for slices, 3 for volumes.
        settings: all that decides the samples beside the weights, the seed and the condition; a pool stores it.
        real_anatomy: samples show patients as they are, all but some voxels: the pool is as private as the images.

    Raises:
        InputError: nothing was trained, the checkpoint is of another architecture, or a setting cannot be used.
    """

    real_anatomy = False

    def __init__(
        self,
        network: Any,
        checkpoint: str | Path,
        provenance: str | Path,
        device: torch.device | str = "cpu",
        min_foreground: int = 8,
        samples_per_pass: int = 1,
        autocast: str | None = None,
        compile: bool = False,
        threads: int = 1,
        inferer: Inferer | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        if int(samples_per_pass) < 1 or int(threads) < 1:
            raise InputError(
                f"samples_per_pass {samples_per_pass}, threads {threads}", "both at least 1", "mend the setting"
            )
        if not isinstance(compile, bool):  # the command line makes a (true) string of "false"
            raise InputError(f"compile {compile!r}", "True or False", "write --compile True")
        self.device = torch.device(device)
        self.autocast_dtype = autocast_dtype(autocast, self.device)
        self.provenance = read_provenance(provenance, checkpoint)
        read_record(provenance, FIELDS, "restore the models folder, or train again")
        load_weights(network, checkpoint, self.provenance, arguments)
        if "phantom" in (name := self.provenance["description"]["name"]).lower():
            logger.warning("%s learnt from the phantom %s: its samples show no patient", checkpoint, name)
        self.network = network.to(self.device).eval()
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.description = DatasetDescription(**self.provenance["description"])
        self.scaling = Scaling.from_record(self.provenance["scaling"])
        self.geometry = geometry_from_record(self.provenance["geometry"])
        self.dimension = len(self.geometry.spatial_size)
        self.min_foreground, self.samples_per_pass = int(min_foreground), int(samples_per_pass)
        self.threads = int(threads)
        self.settings: dict[str, Any] = {
            "min_foreground": self.min_foreground,
            "samples_per_pass": self.samples_per_pass,
            "autocast": self.autocast_dtype and str(self.autocast_dtype).removeprefix("torch."),
            "compile": compile,
            "threads": self.threads,
            "device": self.device.type,
        }
        if compile:
            self._compile()

    def __call__(
        self, num_samples: int, seed: int, batch_size: int = 16, condition: dict | None = None, start: int = 0
    ) -> Iterator[dict]:
        """Yield batches until `num_samples` samples were made; the samples of a batch are of one size.

        Args:
            num_samples: how many.
            seed: of the pool.
            batch_size: most samples in a batch, rounded up to whole passes; it does not change the samples.
            condition: what the family's `check` allows.
            start: first candidate to try (to go on with a pool).

        Yields:
            `image` float32 `(batch, channel, [depth,] height, width)` in the pool's space, `label` uint8
            `(batch, [depth,] height, width)`, and `record`, a list of `{"seed": candidate, "condition", "scores"}`.
        """
        self.check(condition)
        made, candidate = 0, start
        while made < num_samples:
            candidates = self.next_candidates(candidate, min(batch_size, num_samples - made))
            drawn = [item for item in self.draw(candidates, seed, condition) if item is not None]
            drawn = drawn[: num_samples - made]
            candidate, made = candidates.stop, made + len(drawn)
            self.check_yield(candidate - start, made)
            for _, group in groupby(drawn, lambda item: item["label"].shape):
                alike = list(group)
                yield {
                    "image": np.stack([item["image"] for item in alike]),
                    "label": np.stack([item["label"] for item in alike]),
                    "record": [item["record"] for item in alike],
                }

    def check(self, condition: dict | None) -> None:
        """Raise `InputError` for a condition that this generator cannot follow."""
        if condition is not None:
            raise InputError(f"condition {condition}", "none: this generator is unconditional", "leave it out")

    def next_candidates(self, start: int, count: int) -> range:
        """At least `count` candidates from `start`, up to the end of a pass."""
        return range(start, -(-(start + count) // self.samples_per_pass) * self.samples_per_pass)

    def check_yield(self, candidates: int, kept: int) -> None:
        """Raise `InputError` when hardly any of the candidates so far could be kept."""
        if candidates >= MAX_CANDIDATES_PER_SAMPLE * max(16, kept):
            raise InputError(
                f"{candidates} candidates, {kept} of them with {self.min_foreground} voxels of foreground",
                "a generator that makes masks",
                "train longer, or lower --min_foreground",
            )

    @torch.inference_mode()
    def draw(self, candidates: range, seed: int, condition: dict | None = None) -> list[dict | None]:
        """Make the given candidates; each is None (rejected), or a dict.

        The dict holds `image` float32 `(channel, [depth,] height, width)` in the pool's space, `label` uint8
        `([depth,] height, width)`, and `record`: `{"seed": candidate, "condition": dict or None, "scores": {}}`.
        """
        drawn: list[dict | None] = []
        size = self.samples_per_pass
        for first in range(candidates.start // size * size, candidates.stop, size):
            with same_rounding(self.threads):
                joint, conditions = self._generate(range(first, first + size), seed, condition)
            wanted = range(max(first, candidates.start), min(first + size, candidates.stop))
            for candidate in wanted:
                image, label = self._to_space(joint[candidate - first])
                record = {"seed": candidate, "condition": conditions[candidate - first], "scores": {}}
                kept = self.accepts(label, condition)
                drawn.append({"image": image, "label": label, "record": record} if kept else None)
        return drawn

    def accepts(self, label: np.ndarray, condition: dict | None) -> bool:
        """Whether a candidate with this label map may enter a pool that was asked for with `condition`."""
        return bool((label > 0).sum() >= self.min_foreground)

    def _generate(self, candidates: range, seed: int, condition: dict | None) -> tuple[torch.Tensor, list[dict | None]]:
        """One pass: `(candidates, channels + labels, *spatial_size)` float32 on the CPU, and their conditions."""
        raise NotImplementedError

    def _compile(self) -> None:
        """Compile what `_generate` runs: here the network's `forward`."""
        self.network.compile()

    def _autocast(self) -> torch.autocast:
        """The type that the network computes in, as a context."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _to_space(self, joint: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Image and label of a sample `(channels + labels, *spatial_size)` on the cases' grid and in their units."""
        images, masks = joint[None].tensor_split([self.description.num_image_channels], dim=1)
        image, inside = self.scaling.invert(self.geometry.from_grid(images, CUBIC)[0].clamp(0, 1).numpy())
        label = self.description.to_label_map(self.geometry.from_grid(masks)[0].clamp(0, 1).numpy())
        label = np.where(inside, label, 0)
        return image, label.astype(np.uint8)


@contextmanager
def same_rounding(threads: int) -> Iterator[None]:
    """Keep to one order of summation: a number of threads on the CPU, deterministic kernels on a GPU."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic = before[1]


def load_weights(
    network: nn.Module, checkpoint: str | Path, provenance: dict, arguments: Mapping[str, Any] | None = None
) -> None:
    """Load a checkpoint into a network of the same architecture.

    Raises:
        InputError: the shapes, names or arguments differ; names the settings that the checkpoint was trained with.
    """
    state = read_weights(checkpoint)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise InputError(
            f"{checkpoint} is of another architecture ({len(different)} tensors differ, first {different[0]}: "
            f"{found.get(different[0])} in the file, {expected.get(different[0])} in the network)",
            f"the settings it was trained with: {provenance['network']}",
            "give the same overlay or settings as in training",
        )
    refuse_other_network(
        provenance["network"], arguments or {}, checkpoint,
        "the settings that it was trained with", "give the same overlay or settings as in training",
    )  # fmt: skip
    network.load_state_dict(state)
