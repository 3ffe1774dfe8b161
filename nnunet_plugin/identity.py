"""Which patient an array shows: an exact hash of its voxels, and a fingerprint that survives other rounding.

A preprocessed case has other bits after another version of nnU-Net, another interpolation or another machine, and still
shows the same patient; the array of another patient under the same name does not.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

GRID = (4, 12, 12)  # means along the axes of a fingerprint: 576 bytes for each channel, and for the label
_STEPS = 32.0  # of a fingerprint's int8 to one standard deviation of the channel
SAME_IMAGE = 0.1  # largest root mean square difference, in standard deviations; of two patients it is 0.19 and more
TWIN_IMAGE = 0.05  # the same under another name, where nothing but the image says that two are one
SAME_LABEL = 0.7  # smallest Dice of the foreground
_ROWS = 256  # of a table of pairs that are in memory at a time


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


def find_twins(these: Sequence[Identity], those: Sequence[Identity]) -> list[tuple[int, int]]:
    """Return the pairs, by number, that show one image under two names.

    That is so also where one of them is mirrored, turned by 90 degrees in plane, or inverted. An image that
    shows nothing, such as a blank tile, is nobody's twin.
    """
    named: dict[str, list[int]] = {}
    for j, identity in enumerate(those):
        if not _is_flat(identity):
            named.setdefault(identity.sha256, []).append(j)
    pairs = {(i, j) for i, of in enumerate(these) if not _is_flat(of) for j in named.get(of.sha256, ())}
    ours, theirs = _by_channels(these), _by_channels(those)
    for channels in ours.keys() & theirs.keys():
        (rows, a), (columns, b) = ours[channels], theirs[channels]
        for start in range(0, len(rows), _ROWS):
            near = _near_in_any_way(a[start : start + _ROWS], b)
            pairs |= {(rows[start + i], columns[j]) for i, j in np.argwhere(near).tolist()}
    return sorted(pairs)


def _by_channels(identities: Sequence[Identity]) -> dict[int, tuple[list[int], np.ndarray]]:
    """Numbers and images `(cases, channels, 576)`, in steps, of those that show something, by their channels."""
    found: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    for number, identity in enumerate(identities):
        if identity.fingerprint is not None and not _is_flat(identity):
            steps = _decode(identity.fingerprint)[:-1].view(np.int8)
            numbers, images = found.setdefault(len(steps), ([], []))
            numbers.append(number)
            images.append(steps)
    return {channels: (numbers, np.stack(images)) for channels, (numbers, images) in found.items()}


def _near_in_any_way(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether images `(m, channels, 576)` are within TWIN_IMAGE of `(n, channels, 576)` in any way of turning: (m, n).

    |a -+ b|^2 = |a|^2 + |b|^2 -+ 2 ab, and an image and its inverse are told by the sign alone, as fingerprints have a
    mean of 0. All sums are of whole numbers below 2^24, so that float32 is exact.
    """
    a, b = a.astype(np.float32), b.astype(np.float32)
    channels, slack = range(a.shape[1]), (TWIN_IMAGE * _STEPS) ** 2 * a.shape[2]
    squares = [(of**2).sum(axis=2, dtype=np.float64).T for of in (a, b)]
    least = [np.ceil((squares[0][c][:, None] + squares[1][c] - slack) / 2).astype(np.float32) for c in channels]
    whole = a.reshape(*a.shape[:2], *GRID)
    near = np.zeros((len(a), len(b)), bool)
    for turned, z, y, x in product((whole, whole.swapaxes(3, 4)), (1, -1), (1, -1), (1, -1)):
        way = turned[:, :, ::z, ::y, ::x].reshape(a.shape)
        same, inverse = np.ones_like(near), np.ones_like(near)
        for channel in channels:
            products = way[:, channel] @ b[:, channel].T
            same &= products >= least[channel]
            inverse &= -products >= least[channel]
        near |= same | inverse
    return near


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


@lru_cache(maxsize=4096)
def _decode(text: str) -> np.ndarray:
    """Return uint8 `(channels + 1, 576)`."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, int(np.prod(GRID)))
