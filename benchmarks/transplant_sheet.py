"""A sheet of real slices with lesions, and of transplants made from the same cases (docs/samples.png).

    python benchmarks/transplant_sheet.py /path/to/nnUNet_raw/Dataset502_STSPET docs/samples.png

All training cases, first channel, label 1; seed 0, evenly spread over the cases and not chosen.
"""

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from nnunet_plugin.transplant.making import make_bank
from nnunet_plugin.transplant.paste import blend, relabel
from nnunet_plugin.transplant.render import render

COLUMNS = 8


def main(dataset: str, output: str) -> None:
    """Write the sheet."""
    matplotlib.use("Agg")
    cases = []
    for path in sorted(Path(dataset, "labelsTr").glob("*.nii.gz")):
        file = nib.load(Path(dataset, "imagesTr", f"{path.name[:-7]}_0000.nii.gz"))
        image = np.asarray(file.dataobj, np.float32).T
        label = (np.asarray(nib.load(path).dataobj).T == 1).astype(np.int16)
        cases.append((((image - image.mean()) / image.std())[None], label, file.header.get_zooms()[::-1]))
    bank, rng = make_bank(cases, 2, [1]), np.random.default_rng(0)
    figure, axes = plt.subplots(4, COLUMNS, figsize=(COLUMNS * 1.4, 6.4), squeeze=True)
    real = [cases[i] for i in np.linspace(0, len(cases) - 1, 2 * COLUMNS).round().astype(int)]
    for axis, (image, label, _) in zip(axes[:2].flat, real, strict=True):
        plane = int(label.sum(axis=(1, 2)).argmax())
        draw(axis, image[0, plane], label[plane])
    for axis in axes[2:].flat:
        while (transplant := bank.draw(rng, 0.0)) is None:
            pass
        image, label, _ = cases[transplant.case]
        patch = render(bank, transplant, label.shape[1:], None)
        start = np.zeros(2, int)
        draw(axis, blend(image[:, transplant.plane], patch, start)[0], relabel(label[transplant.plane], patch, start))
    axes[0, 0].set_title("real", fontsize=9, loc="left")
    axes[2, 0].set_title("a lesion of another patient", fontsize=9, loc="left")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.96, 0.03, 0.12)
    figure.savefig(output, dpi=100)


def draw(axis, image, label) -> None:
    axis.imshow(image, cmap="gray_r", vmin=image.min(), vmax=np.percentile(image, 99.8))
    axis.axis("off")
    if label.any():
        axis.contour(label, [0.5], colors="red", linewidths=0.8)


if __name__ == "__main__":
    main(*sys.argv[1:])
