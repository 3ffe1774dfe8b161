"""Frozen feature extractors for the feature reconstruction loss and for feature-space metrics.

One interface: called on images (batch, image channels, height, width) in [0, 1], an extractor returns a list
of feature maps (batch, features, height', width'), from fine to coarse; its `name` says whose features they
are and stands beside every figure that was computed with them.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import InputError
from ..runtime.files import file_sha256

logger = logging.getLogger(__name__)

# torchvision's ImageNet weights; the file names carry the sha256 prefix
VGG16_FILE = "vgg16-397923af.pth"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"


class FeatureExtractor(nn.Module):
    """A frozen network with named feature maps: always in eval mode, no parameter asks for a gradient.

    Gradients pass through it to the images. It may be a submodule of what is trained and saved.
    """

    @property
    def name(self) -> str:
        """Network, settings and origin of the weights."""
        raise NotImplementedError

    def freeze(self) -> "FeatureExtractor":
        """Stop gradients to the parameters and switch to eval mode, for good."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stay in eval mode, also when a parent module is switched to training."""
        return super().train(False)


class ImageNetFeatures(FeatureExtractor):
    """ReLU outputs of one of torchvision's ImageNet classifiers, from a local file; see its subclasses.

    Layers count from one, over every module of torchvision's `NETWORK().features`: layer n is the output of
    `features[:n]`.

    The networks see colour: every image channel is repeated to three and normalised as ImageNet was, the channels
    run as one batch, and their features are stacked channel after channel.

    Args:
        title: `VGG16` or `AlexNet`.
        file: the name of its weights file in the torch hub cache, ending in `-SHA256PREFIX.pth`.
        weights: the path of a state dict file, or None for the one in the torch hub cache. Nothing is downloaded.
        layers: which ReLUs.

    Raises:
        InputError: no such file, a file that does not fit, or a layer that is no ReLU.
    """

    mean: Tensor
    std: Tensor
    source_sha256: Tensor

    def __init__(self, title: str, file: str, weights: str | Path | None, layers: Sequence[int]):
        super().__init__()
        from torchvision import models  # a slow import that only this class needs

        self.title, self.file, self.layers = title, file, tuple(layers)
        kind = title.lower()
        with torch.device("meta"):  # neither memory for the classifier nor draws from the global generator
            network = getattr(models, kind)(weights=None).features
        relus = [n for n, module in enumerate(network, start=1) if isinstance(module, nn.ReLU)]
        if not layers or list(layers) != sorted(set(layers) & set(relus)):
            raise InputError(
                f"{title} layers {list(layers)}",
                f"an ascending choice of {relus}, the ReLU layers of {kind}.features counted from 1",
                "name ReLU layers only",
            )
        path = weights_file(title, file, weights)
        self.features = network[: max(layers)]
        state = pretrained_state(path, self.features.state_dict(), f"{title} weights", file, prefix="features.")
        self.features.load_state_dict(state, assign=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        # In the state dict, so that the name follows the weights into and out of a checkpoint.
        self.register_buffer("source_sha256", sha256_buffer(path))
        self.freeze()

    @property
    def name(self) -> str:
        """Such as `vgg16-imagenet(layers=2,7,12,21,sha256=397923af)`; plain `vgg16` with other weights."""
        kind, prefix = self.title.lower(), sha256_prefix(self.source_sha256)
        kind += "-imagenet" if self.file.endswith(f"-{prefix}.pth") else ""
        return f"{kind}(layers={','.join(map(str, self.layers))},sha256={prefix})"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps, a layer each: (batch, image channels * width of the layer, height', width')."""
        batch, channels = images.shape[:2]
        maps = []
        hidden = images.reshape(batch * channels, 1, *images.shape[2:])
        hidden = (hidden.expand(-1, 3, -1, -1) - self.mean) / self.std
        for number, module in enumerate(self.features, start=1):
            hidden = module(hidden)
            if number in self.layers:
                maps.append(hidden.reshape(batch, -1, *hidden.shape[2:]))
        return maps


class VGG16Features(ImageNetFeatures):
    """ReLU outputs of VGG16 (Simonyan and Zisserman 2015), as in dHVAE (Kebaili et al. 2024), section 3.2.

    The paper's "ReLU activation layers" 2, 7, 12 and 21 are ReLUs only when counted from one, namely relu1_1,
    relu2_1, relu3_1 and relu4_2; counted from zero all four are convolutions. For `weights` and errors see
    `ImageNetFeatures`.
    """

    def __init__(self, weights: str | Path | None = None, layers: Sequence[int] = (2, 7, 12, 21)):
        super().__init__("VGG16", VGG16_FILE, weights, layers)


class AlexNetFeatures(ImageNetFeatures):
    """The five ReLU outputs of AlexNet (Krizhevsky et al. 2012), which LPIPS compares (Zhang et al. 2018).

    For `weights` and errors see `ImageNetFeatures`.
    """

    def __init__(self, weights: str | Path | None = None, layers: Sequence[int] = (2, 5, 8, 10, 12)):
        super().__init__("AlexNet", ALEXNET_FILE, weights, layers)


class SegmentationFeatures(FeatureExtractor):
    """The project's own extractor, for when no VGG16 weights are at hand: the encoder of a small U-Net.

    Trained by `train_segmentation_features` on the slices that the generator is trained on, so it knows what
    tells a tumour from tissue in this data set, and brings no case into the generator that it may not see.
    Features are the outputs of the encoder's stages, at full, half, quarter ... resolution. Batch
    normalisation, frozen, gives them unit scale while they still see absolute intensity.
    """

    recipe: Tensor

    def __init__(
        self, image_channels: int, labels: int, channels: Sequence[int] = (16, 32, 64), steps: int = 0, seed: int = 0
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # PyTorch's own initialisation, drawn anew below
            self.encoder = nn.ModuleList(
                _stage(before, after) for before, after in zip((image_channels, *channels), channels, strict=False)
            )
            self.decoder = nn.ModuleList(
                _stage(fine + coarse, fine) for fine, coarse in zip(channels, channels[1:], strict=False)
            )
            self.head = nn.Conv2d(channels[0], labels, kernel_size=1)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.image_channels, self.labels = image_channels, labels
        # In the state dict, so that the name follows the weights into and out of a checkpoint.
        self.register_buffer("recipe", torch.tensor([steps, seed]))
        self.freeze()

    @property
    def name(self) -> str:
        """Such as `synthaug-segmentation-features(C=1,L=1,steps=200,seed=0)`."""
        steps, seed = self.recipe.tolist()
        shape = f"C={self.image_channels},L={self.labels}"
        return f"synthaug-segmentation-features({shape},steps={steps},seed={seed})"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps, a stage each: (batch, width of the stage, height / 2^stage, width / 2^stage)."""
        maps: list[Tensor] = []
        for stage in self.encoder:
            maps.append(stage(functional.max_pool2d(maps[-1], 2) if maps else images))
        return maps

    def segment(self, images: Tensor) -> Tensor:
        """Logits (batch, labels, height, width) of the masks, which the features were trained for."""
        *skips, hidden = self(images)
        for skip, stage in zip(reversed(skips), reversed(self.decoder), strict=True):
            hidden = functional.interpolate(hidden, size=skip.shape[2:])
            hidden = stage(torch.cat([skip, hidden], dim=1))
        return self.head(hidden)


def train_segmentation_features(
    images: Tensor,
    masks: Tensor,
    *,
    steps: int = 200,
    seed: int = 0,
    channels: Sequence[int] = (16, 32, 64),
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> SegmentationFeatures:
    """Train the project's own extractor to segment the masks from the images of the training cases.

    images (N, image channels, height, width) in [0, 1]; masks (N, labels, height, width) in {0, 1}. Pass
    slices of one fold's training cases only. `progress(step, steps, loss)` is called after each step. The
    same seed gives the same extractor, and the global random state stays as it is. Raises InputError for
    tensors that are not of this kind.
    """
    _check_slices(images, masks)
    extractor = SegmentationFeatures(images.shape[1], masks.shape[1], channels, steps, seed)
    extractor = extractor.to(device).to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU
    extractor.requires_grad_(True)
    nn.Module.train(extractor)  # the one place where batch normalisation learns
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(extractor.parameters(), lr=3e-3)
    # Over the batch, because a slice without a label has no Dice of its own.
    dice = DiceLoss(sigmoid=True, batch=True)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        flips = torch.rand(2, batch_size, generator=generator) < 0.5
        x = _flip(images[chosen], flips).to(device, torch.float32)
        y = _flip(masks[chosen], flips).to(device, torch.float32)
        logits = extractor.segment(x)
        loss = dice(logits, y) + functional.binary_cross_entropy_with_logits(logits, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(step, steps, loss.item())
    extractor.zero_grad()
    extractor.freeze()
    return extractor


def feature_extractor(
    weights: str | Path | None,
    images: Tensor,
    masks: Tensor,
    *,
    steps: int = 200,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> FeatureExtractor:
    """Choose the extractor, and log which: VGG16 or the project's own.

    `weights`: the path of a VGG16 file; "own" for the project's own extractor; None for VGG16 if the torch
    hub cache holds it, else the own. images and masks are the training slices, as
    `train_segmentation_features` takes them. Raises InputError as the two extractors do.
    """
    extractor: FeatureExtractor
    if weights != "own" and (weights is not None or hub_weights() is not None):
        extractor = VGG16Features(weights).to(device)
    else:
        extractor = train_segmentation_features(images, masks, steps=steps, seed=seed, device=device, progress=progress)
    logger.info("Feature extractor: %s", extractor.name)
    return extractor


def hub_weights(file: str | None = None) -> Path | None:
    """A weights file in the torch hub cache (torchvision's VGG16 by default), or None if it does not lie there."""
    path = _hub_folder() / (file or VGG16_FILE)
    return path if path.is_file() else None


def weights_file(title: str, file: str, weights: str | Path | None) -> Path:
    """The file at `weights`, or for None `file` in the torch hub cache; raises InputError if there is none."""
    path = Path(weights) if weights is not None else hub_weights(file)
    if path is None or not path.is_file():
        raise InputError(
            f"{title} weights {path or f'{file} in the torch hub cache'}: no such file",
            f"a state dict file of {title}, such as {file}",
            f"put {file} into {_hub_folder()}, or pass its path; the project's own extractor needs no file",
        )
    return path


def sha256_buffer(path: Path) -> Tensor:
    """Hash of a weights file as a uint8 tensor (32,), to travel in a state dict."""
    return torch.tensor(list(bytes.fromhex(file_sha256(path))), dtype=torch.uint8)


def sha256_prefix(digest: Tensor) -> str:
    """The eight hexadecimal digits that names carry."""
    return bytes(digest.tolist()).hex()[:8]


def pretrained_state(
    path: Path, wanted: dict[str, Tensor], what: str, file: str, prefix: str = ""
) -> dict[str, Tensor]:
    """The entries `prefix + key` of a state dict file that `wanted` asks for, in float32 and under `key`.

    Raises InputError for a file that cannot be read without running code from it, and for entries that are
    missing, of another shape, or not finite.
    """
    shapes = ", ".join(f"{prefix}{key} of shape {'x'.join(map(str, x.shape))}" for key, x in [*wanted.items()][:1])
    allowed, remedy = f"a state dict file such as {file} ({shapes}, ...)", f"use {file}, or the project's own extractor"
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises on a foreign file is anyone's guess
        raise InputError(f"{what} {path}: unreadable ({type(error).__name__})", allowed, remedy) from error
    state = {}
    for key, tensor in wanted.items():
        found = loaded.get(prefix + key) if isinstance(loaded, dict) else None
        if not isinstance(found, Tensor) or found.shape != tensor.shape or not found.isfinite().all():
            got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "nothing usable"
            raise InputError(f"{what} {path}: {prefix}{key} is {got}", allowed, remedy)
        state[key] = found.float()
    return state


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _stage(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _flip(x: Tensor, flips: Tensor) -> Tensor:
    """Flip each sample along height and width as flips (2, batch) says."""
    for dim, flip in zip((2, 3), flips, strict=True):
        x = torch.where(flip.to(x.device).view(-1, 1, 1, 1), x.flip(dim), x)
    return x


def _check_slices(images: Tensor, masks: Tensor) -> None:
    allowed = "images (N, C, H, W) in [0, 1] and masks (N, L, H, W) in {0, 1} with some foreground"
    remedy = "pass the training slices as scripts.data yields them"
    got = None
    if images.ndim != 4 or masks.ndim != 4 or len(images) != len(masks) or not len(images):
        got = f"images {tuple(images.shape)} and masks {tuple(masks.shape)}"
    elif images.shape[2:] != masks.shape[2:] or not images.shape[1] or not masks.shape[1]:
        got = f"images {tuple(images.shape)} and masks {tuple(masks.shape)}"
    elif not ((images >= 0) & (images <= 1)).all():  # also false where a value is NaN
        got = "images with values outside [0, 1] or not finite"
    elif not ((masks == 0) | (masks == 1)).all():
        got = "masks with values other than 0 and 1"
    elif not masks.any():
        got = f"{len(masks)} masks without any foreground"
    if got is not None:
        raise InputError(got, allowed, remedy)
