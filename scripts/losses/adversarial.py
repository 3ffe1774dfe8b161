"""Adversarial regularisation: a PatchGAN discriminator, and the losses of least squares on its scores."""

from collections.abc import Sequence

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.func import functional_call

from ..runtime.errors import InputError
from . import least_squares


def patch_discriminator(
    in_channels: int, image_size: Sequence[int], *, channels: int = 64, layers: int = 3
) -> PatchDiscriminator:
    """PatchGAN (Isola et al. 2017) that sees image and mask channels together.

    Takes (batch, in_channels, *image_size), with 3D convolutions where `image_size` has three numbers. The last map
    that it returns holds a score per patch: 6 x 6 patches for 64 x 64 pixels, 14 x 14 for 128 x 128, each 70 pixels
    wide with 3 layers. Instance norm, so that samples do not see each other and a batch of one works. Raises
    InputError if `image_size` is too small for the layers.
    """
    smallest = 3 * 2**layers  # leaves 3 pixels before the last two convolutions, which take one each
    if min(image_size) < smallest:
        raise InputError(
            f"a PatchGAN discriminator with {layers} layers for {' x '.join(map(str, image_size))} pixels",
            f"at least {smallest} pixels along each axis",
            "use fewer discriminator layers or a larger spatial_size",
        )
    return PatchDiscriminator(
        spatial_dims=len(image_size), channels=channels, in_channels=in_channels, num_layers_d=layers, norm="INSTANCE"
    )


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """(E[(D(x) - 1)^2] + E[D(G)^2]) / 2, the discriminator's loss of LSGAN (Mao et al. 2017), eq. 9.

    real and fake (batch, channels + labels, height, width) in [0, 1]; the expectation is over samples and
    patches. The fakes are detached, so the generator gets no gradient. Stands for dHVAE (Kebaili et al.
    2024), eq. 11, in the least-squares form.
    """
    return least_squares.discriminator_loss(_scores(discriminator(real)), _scores(discriminator(fake.detach())))


def generator_loss(discriminator: nn.Module, fake: Tensor) -> Tensor:
    """E[(D(G) - 1)^2] / 2, the generator's loss of LSGAN (Mao et al. 2017), eq. 9.

    fake (batch, channels + labels, height, width) in [0, 1]; the expectation is over samples and patches.
    The discriminator's parameters get no gradient from it.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    maps = functional_call(discriminator, frozen, (fake,))
    return least_squares.generator_loss(_scores(maps))


def _scores(maps: list[Tensor]) -> Tensor:
    """The last map: the ones before are activations."""
    return maps[-1].float()
