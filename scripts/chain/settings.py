"""What a chain is asked to do, checked before any work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..data.folds import NUM_FOLDS
from ..packaging.bundle_files import bundle_dir
from ..runtime.errors import InputError

CONFIGURATIONS = ["2d", "3d_fullres"]


@dataclass(frozen=True)
class ChainSettings:
    """What the chain does; the defaults are the CPU preset.

    Attributes:
        bundle: generator, such as `dhvae`.
        overlays: further config files of the bundle, such as `paper.json`.
        generator: overrides of the bundle's `train.json`.
        configuration: of nnU-Net, `2d` or `3d_fullres` (for generators of volumes).
        num_samples: size of the pool.
        share: synthetic share of nnU-Net's training samples in the second arm.
        fold: fold that the generator and nnU-Net train on.
        seeds: one nnU-Net training per arm and seed.
        num_epochs, num_iterations_per_epoch: nnU-Net's training length, equal in both arms.
        full_plans: train nnU-Net's own network (a GPU) instead of the small one of the CPU plans.
        seed: of the generator, the pool and the draws.
    """

    bundle: str = "dhvae"
    overlays: tuple[str, ...] = ()
    generator: tuple[tuple[str, Any], ...] = ()
    configuration: str = "2d"
    num_samples: int = 400
    share: float = 0.5
    fold: int = 0
    seeds: tuple[int, ...] = (0,)
    num_epochs: int = 12
    num_iterations_per_epoch: int = 40
    full_plans: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse, before any work, what a later stage would refuse after hours.

        Raises:
            InputError: names the setting.
        """
        configs = bundle_dir(self.bundle) / "configs"
        known = set(json.loads((configs / "train.json").read_text()))
        checks = {
            "configuration": (self.configuration, self.configuration in CONFIGURATIONS, f"one of {CONFIGURATIONS}"),
            "share": (self.share, isinstance(self.share, (int, float)) and 0 < self.share <= 1, "in (0, 1]"),
            "fold": (self.fold, self.fold in range(NUM_FOLDS), f"0 to {NUM_FOLDS - 1}"),
            "num_samples": (self.num_samples, _whole(self.num_samples, 1), "a whole number from 1"),
            "num_epochs": (self.num_epochs, _whole(self.num_epochs, 1), "a whole number from 1"),
            "num_iterations_per_epoch": (
                self.num_iterations_per_epoch, _whole(self.num_iterations_per_epoch, 1), "a whole number from 1"
            ),
            "seed": (self.seed, _whole(self.seed, 0), "a whole number from 0"),
            "seeds": (
                self.seeds,
                bool(self.seeds) and all(_whole(s, 0) for s in self.seeds) and len(set(self.seeds)) == len(self.seeds),
                "different whole numbers from 0, such as [0,1]",
            ),
            "overlays": (
                self.overlays, all((configs / str(name)).is_file() for name in self.overlays), f"files of {configs}"
            ),
            "generator": (
                dict(self.generator),
                all(str(key).split("#")[0] in known for key, _ in self.generator),
                f"settings of {configs / 'train.json'}",
            ),
        }  # fmt: skip
        for name, (value, good, allowed) in checks.items():
            if not good:
                raise InputError(f"{name} {value!r}", allowed, f"set --{name}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
