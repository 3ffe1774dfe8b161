"""Which patient an array shows: an exact hash of its voxels, and a fingerprint that survives other rounding.

A preprocessed case has other bits after another version of nnU-Net, another interpolation or another machine, and still
shows the same patient; the array of another patient under the same name does not.
"""

import base64
import hashlib
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

GRID = (4, 12, 12)  # means along the axes of a fingerprint: 576 bytes for each channel, and for the label
_STEPS = 32.0  # of a fingerprint's int8 to one standard deviation of the channel
SAME_IMAGE = 0.1  # largest root mean square difference, in standard deviations; of two patients it is 0.19 and more
TWIN_IMAGE = 0.05  # the same under another name, where nothing but the image says that two are one
SAME_LABEL = 0.7  # smallest Dice of the foreground


class Identity(NamedTuple):
    """Hash of a case's voxels, and its fingerprint; None where a record was written before there were any."""

    sha256: str
    fingerprint: str | None

    def is_readable(self) -> bool:
        """Whether the fingerprint is one, or None."""
        try:
            return self.fingerprint is None or len(_decode(self.fingerprint)) > 1
        except (ValueError, TypeError):
            return False


def identify(image: np.ndarray, label: np.ndarray) -> Identity:
    """Return the identity of a case.

    Args:
        image: `(channel, z, y, x)`, any intensities.
        label: `(z, y, x)` integers; below 0 (nnU-Net's mark of what lies outside its mask) counts as 0.
    """
    image, label = np.ascontiguousarray(image, np.float32), np.maximum(label, 0).astype(np.int16)
    digest = hashlib.sha256(image.tobytes())
    digest.update(np.ascontiguousarray(label).tobytes())
    return Identity(digest.hexdigest(), fingerprint(image, label))


def fingerprint(image: np.ndarray, label: np.ndarray) -> str:
    """Return the means of image and foreground on a grid of 4 x 12 x 12, standardised, as base64 of 8-bit numbers."""
    parts = []
    for channel in image:
        means = _means(np.asarray(channel, np.float32))
        deviation = float(means.std())
        # The means of a constant channel differ by rounding alone.
        flat = deviation <= 1e-6 * float(np.abs(means).max())
        steps = np.zeros(GRID) if flat else (means - means.mean()) / deviation * _STEPS
        parts.append(np.clip(np.rint(steps), -127, 127).astype(np.int8).tobytes())
    parts.append(np.rint(255 * _means((label > 0).astype(np.float32))).astype(np.uint8).tobytes())
    return base64.b64encode(b"".join(parts)).decode("ascii")


def image_distance(first: str, second: str) -> float:
    """Return the root mean square difference of two images' fingerprints, of the channel that differs most.

    In standard deviations: 0 for the same image at any brightness and contrast, about 1.4 for unrelated ones. Infinite
    when the numbers of channels differ.
    """
    a, b = _image(first), _image(second)
    return float(np.sqrt(((a - b) ** 2).mean(axis=1)).max()) if a.shape == b.shape else float("inf")


def label_agreement(first: str, second: str) -> float:
    """Return the Dice of two foregrounds on the grid of the fingerprints, in [0, 1]; 1 when both are empty."""
    a, b = (_decode(text)[-1].astype(float) for text in (first, second))
    total = a.sum() + b.sum()
    # A voxel or two that come and go with the rounding are no other foreground.
    return 1.0 if total <= 255 else float(2 * np.minimum(a, b).sum() / total)


def same_case(first: Identity, second: Identity) -> bool:
    """Whether two identities are of one case: the same voxels, or image and foreground alike within the tolerance."""
    if first.sha256 == second.sha256:
        return True
    if first.fingerprint is None or second.fingerprint is None:
        return False
    return same_image(first, second) and label_agreement(first.fingerprint, second.fingerprint) >= SAME_LABEL


def same_image(first: Identity, second: Identity) -> bool:
    """Whether two identities show one image, whatever is annotated in it."""
    if first.sha256 == second.sha256:
        return True
    if first.fingerprint is None or second.fingerprint is None:
        return False
    return image_distance(first.fingerprint, second.fingerprint) <= SAME_IMAGE


def is_twin(first: Identity, second: Identity) -> bool:
    """Whether two cases of different names show one image, be it mirrored, turned by 90 degrees or inverted.

    An image that shows nothing, such as a blank tile, is nobody's twin.
    """
    if _is_flat(first) or _is_flat(second):
        return False
    if first.sha256 == second.sha256:
        return True
    if first.fingerprint is None or second.fingerprint is None:
        return False
    a, others = _image(first.fingerprint), _turned(second.fingerprint)
    if a.shape != others.shape[1:]:
        return False
    # An image and its inverse are told by the sign alone, as fingerprints have a mean of 0.
    nearest = [np.sqrt(((others - sign * a) ** 2).mean(axis=2)).max(axis=1).min() for sign in (1, -1)]
    return bool(min(nearest) <= TWIN_IMAGE)


def _is_flat(identity: Identity) -> bool:
    """Whether the image is constant in every channel, as far as its fingerprint says."""
    return identity.fingerprint is not None and not _decode(identity.fingerprint)[:-1].any()


def _means(volume: np.ndarray) -> np.ndarray:
    """Means of `(z, y, x)` over the parts of a grid; along a short axis the parts overlap."""
    for axis, parts in enumerate(GRID):
        size = volume.shape[axis]
        edges = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
        volume = np.stack(
            [volume.take(range(start, stop), axis).mean(axis, dtype=np.float64) for start, stop in edges], axis
        )
    return volume


def _image(text: str) -> np.ndarray:
    """Return float `(channels, 576)`, in standard deviations."""
    return _decode(text)[:-1].view(np.int8).astype(float) / _STEPS


@lru_cache(maxsize=1024)
def _turned(text: str) -> np.ndarray:
    """Return the image of a fingerprint mirrored along any axes, as it is and turned: (16, channels, 576)."""
    whole = _image(text).reshape(-1, *GRID)
    ways = [way[:, ::z, ::y, ::x] for way in (whole, whole.swapaxes(2, 3)) for z, y, x in product((1, -1), repeat=3)]
    return np.stack(ways).reshape(len(ways), len(whole), -1)


@lru_cache(maxsize=4096)
def _decode(text: str) -> np.ndarray:
    """Return uint8 `(channels + 1, 576)`."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, int(np.prod(GRID)))
