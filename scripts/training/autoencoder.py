"""First stage of latent diffusion: a step of the autoencoder, its validation, and how the second stage gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from ..data.provenance import read_provenance
from ..losses.adversarial import discriminator_loss, generator_loss
from ..losses.autoencoder import autoencoder_objective
from ..networks.autoencoder import slice_positions
from ..networks.whole import read_weights
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, casting
from .averaging import WeightAverage
from .checkpoints import CHECKPOINT, MODEL
from .evaluation import ItemEvaluation
from .parallel import mean_terms
from .steps import descend, images


def autoencoder_items(items: list[dict[str, Any]], slice_wise: bool) -> list[dict[str, Any]]:
    """What the autoencoder of a `LatentDiffusion` is trained on: the items, or their slices if it takes such."""
    return volume_slices(items) if slice_wise else items


def check_first_stage(wavelet_levels: int) -> None:
    """Raise `InputError` where wavelets stand in the place of an autoencoder."""
    if wavelet_levels:
        raise InputError(
            f"wavelet_levels {wavelet_levels}, and no autoencoder to train",
            "wavelet_levels 0 in the first stage",
            "run configs/train.json, which then trains the diffusion alone, or leave the wavelets out",
        )


def volume_slices(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All slices of volumes, for a `SliceAutoencoder`: items with `image` and the slice's relative `position`."""
    return [
        {Keys.IMAGE: item[Keys.IMAGE][..., index], "position": position}
        for item in items
        for index, position in enumerate(slice_positions(item[Keys.IMAGE].shape[-1]))
    ]


def _code(network: Any, batch: dict, device: torch.device, noise: torch.Generator) -> tuple[Tensor, ...]:
    """Input, logits, mean and standard deviation of a batch of whole items, or of slices with their positions."""
    x = images(batch, device)
    where = (batch["position"].to(device),) if "position" in batch else ()
    mean, std = network.encode_slices(x, *where) if where else network.encode(x)
    z = mean + std * draw_rows(lambda n: torch.randn((n, *std.shape[1:]), generator=noise), len(std), noise).to(std)
    return x, network.decode_slices(z, *where) if where else network.decode(z), mean, std


class AutoencoderUpdate:
    """A step on `autoencoder_objective`, with a PatchGAN if one is given (VAE-GAN, the autoencoder of 3D-LDM).

    Give it to MONAI's `SupervisedTrainer` as `iteration_update`; it returns the named terms of the step as floats.

    Args:
        num_image_channels: how many of the channels are image, the others are mask.
        generator: source of the noise of the latents.
        average: of the network's weights, updated after each step; or None.
        kl_weight: see `autoencoder_objective`.
        discriminator, discriminator_optimizer: of the adversarial term, or None to leave it out.
        discriminator_start: iteration from which the discriminator takes part.
        adversarial_weight: factor of the adversarial term.
        autocast: see `autocast_dtype`.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.
    """

    def __init__(
        self,
        num_image_channels: int,
        generator: torch.Generator,
        average: WeightAverage | None = None,
        kl_weight: float = 1e-6,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        discriminator_start: int = 0,
        adversarial_weight: float = 0.0,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
        gradient_clip: float | None = None,
    ):
        self.num_image_channels, self.generator = num_image_channels, generator
        self.average, self.kl_weight = average, kl_weight
        self.discriminator, self.discriminator_optimizer = discriminator, discriminator_optimizer
        self.discriminator_start, self.adversarial_weight = discriminator_start, adversarial_weight
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `batch["image"]` (batch, channels + labels, ...); slices come with `batch["position"]`."""
        device, step = engine.state.device, engine.state.iteration
        engine.network.train()
        judge = self.discriminator if step > self.discriminator_start else None
        with casting(device, self.autocast_dtype):
            x, logits, mean, std = _code(engine.network, batch, device, self.generator)
        terms = autoencoder_objective(logits, x, mean, std, self.num_image_channels, self.kl_weight, shared=True)
        named = terms._asdict()
        fake = torch.sigmoid(logits.float())
        if judge is not None:
            named["generator"] = generator_loss(judge, fake)
            named["loss"] = named["loss"] + self.adversarial_weight * named["generator"]
        descend(named, engine.network, engine.optimizer, step, self.gradient_clip)
        if self.average is not None:
            self.average.update_parameters(engine.network)
        if judge is not None and self.discriminator_optimizer is not None:
            named["discriminator"] = discriminator_loss(judge, x, fake)
            descend({"discriminator": named["discriminator"]}, judge, self.discriminator_optimizer, step)
        return mean_terms(named)


class AutoencoderEvaluation(ItemEvaluation):
    """The terms of `autoencoder_objective` on held-out items: slices, or whole volumes, whatever is trained on."""

    def __init__(self, num_image_channels: int, seed: int, kl_weight: float = 1e-6):
        super().__init__(seed)
        self.num_image_channels, self.kl_weight = num_image_channels, kl_weight

    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Evaluate one."""
        _, logits, mean, std = _code(network, {Keys.IMAGE: x}, x.device, noise)
        return autoencoder_objective(logits, x, mean, std, self.num_image_channels, self.kl_weight)._asdict()


def load_autoencoder(network: Any, record: Any) -> dict[str, Any]:
    """Put the finished first stage into `network.autoencoder` and give the facts that the second stage records.

    Args:
        network: a `LatentDiffusion`.
        record: `TrainingRecord` of the first stage as it is asked for now, with its folder.

    Raises:
        InputError: the first stage is not finished, or it is of other data or settings.
    """
    ckpt_dir = Path(record.ckpt_dir)
    if not all((ckpt_dir / name).is_file() for name in (CHECKPOINT, MODEL, "training.json", "provenance.json")):
        raise InputError(
            f"no trained autoencoder in {ckpt_dir} ({CHECKPOINT}, {MODEL}, training.json, provenance.json)",
            "the first stage, finished",
            "run configs/train.json, which does both stages, or first configs/train_autoencoder.json",
        )
    provenance = read_provenance(ckpt_dir / "provenance.json", ckpt_dir / MODEL)
    record.check_resume()
    network.autoencoder.load_state_dict(read_weights(ckpt_dir / MODEL))
    return {"weights_sha256": provenance["weights_sha256"], **provenance["training"]}
