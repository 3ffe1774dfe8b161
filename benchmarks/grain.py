"""How much of their grain lesions and slices lose when they are moved: by straight lines and by splines.

    python benchmarks/grain.py $nnUNet_preprocessed/Dataset502_STSPET grain_pet.json

Training cases of all folds, 2d, the first channel, data of one label. Transplants: the root mean square, inside of a
lesion without its rim, of a pixel minus the mean of its four neighbours, itself and as a share of the lesion's standard
deviation; of real lesions and of `--draws` transplants, no decoys, seed 0, with their gains. Copies: the standard
deviation of the mixed differences of neighbours in a warped copy (`warped_case`, 2D) over that of the case, one copy a
case, seed 0.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import fire
import numpy as np
from nnunet_plugin.transplant import paste, warp
from nnunet_plugin.transplant.making import make_bank
from nnunet_plugin.transplant.render import render
from scipy import ndimage

from scripts.data.cases import open_cases
from scripts.data.warping import warped_case
from scripts.runtime.files import write_json

ORDERS = {"straight lines": 1, "cubic splines": 3}
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def lesion_grain(image: np.ndarray, mask: np.ndarray) -> tuple[float, float] | None:
    """Grain of a lesion `(height, width)` and its share of the lesion's deviation; None where all of it is rim."""
    inner = ndimage.binary_erosion(mask)
    if inner.sum() < 8:
        return None
    around = ndimage.convolve(image, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4)
    grain = float(np.sqrt(np.square((image - around)[inner]).mean()))
    return grain, grain / (float(image[mask].std()) + 1e-3)


def table(pairs: list[tuple[float, float]]) -> dict:
    """Quantiles of grain and share."""
    grain, share = (np.quantile(column, QUANTILES).round(3).tolist() for column in zip(*pairs, strict=True))
    return {"n": len(pairs), "grain": grain, "share of the deviation": share}


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected lesions of a plane, as the bank takes them."""
    numbered, count = ndimage.label(mask, np.ones((3, 3)))
    return [numbered == number for number in range(1, count + 1)]


def transplants(bank, cases: list, draws: int) -> tuple[list[tuple[float, float]], list[float]]:
    """Grain of transplants into the cases that the bank was made of, and the gains of all that were drawn."""
    rng, found, gains = np.random.default_rng(0), [], []
    for _ in range(20 * draws):
        transplant = bank.draw(rng, 0.0)
        if transplant is None:
            raise SystemExit("no lesion fits anywhere")
        image, labels = (of[..., transplant.plane, :, :] for of in cases[transplant.case][:2])
        patch, start = render(bank, transplant, labels.shape), np.zeros(2, int)
        pasted = paste.relabel(labels, patch, start)
        one = lesion_grain(paste.blend(image, patch, start)[0], (pasted > 0) & (labels == 0))
        gains.append(float(transplant.gain[0]))
        found += [one] if one else []
        if len(found) == draws:
            break
    return found, gains


def copies(cases) -> list[float]:
    """Grain that copies keep, a number for each case."""

    def grain(image: np.ndarray) -> float:
        return float(np.diff(np.diff(image[0], axis=-1), axis=-2).std())

    rng = np.random.default_rng(0)
    return [grain(warped_case(case, cases.spacing, 2, rng).image) / grain(case.image) for case in cases.training()]


def main(dataset_dir: str, output: str, draws: int = 300) -> None:
    """Measure, and write JSON."""
    opened = open_cases(dataset_dir, "all", "nnUNetPlans", "2d")
    if len(opened.description.painted) != 1:
        raise SystemExit(f"{dataset_dir} has labels {opened.description.painted}; allowed: one")
    cases = [(case.image, case.label, list(opened.spacing)) for case in opened.training()]
    planes = [
        (image[0, z], piece) for image, label, _ in cases for z in range(len(label)) for piece in pieces(label[z])
    ]
    real = [one for one in (lesion_grain(*plane) for plane in planes) if one]
    bank = make_bank(cases, 2, list(opened.description.painted.values()))
    found = {"what": __doc__, "data": Path(dataset_dir).name, "patients": len(cases), "quantiles": QUANTILES}
    found["lesions"] = {"real": table(real)}
    found["copies"] = {}
    for name, order in ORDERS.items():
        with mock.patch.object(warp, "SPLINES", order):
            made, gains = transplants(bank, cases, draws)
            kept = copies(opened)
        found["lesions"][f"transplants, {name}"] = table(made)
        found["copies"][name] = np.quantile(kept, QUANTILES).round(3).tolist()
    found["gains"] = np.quantile(gains, QUANTILES).round(3).tolist()
    write_json(Path(output), found)
    print(Path(output).read_text())


if __name__ == "__main__":
    fire.Fire(main)
