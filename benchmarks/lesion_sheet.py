"""A sheet of real slices with lesions, of transplants from the same cases, and of painted lesions (docs/samples.png).

    python benchmarks/lesion_sheet.py /path/to/nnUNet_raw/Dataset502_STSPET POOL docs/samples.png

POOL is one of the bundle lesion_flow. The cases that it learnt from, first channel, label 1; seed 0, evenly spread and
not chosen. Each slice has a window of its own.
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

from scripts.pool.writing import load_sample, read_pool

COLUMNS = 8


def main(dataset: str, pool: str, output: str) -> None:
    """Write the sheet."""
    matplotlib.use("Agg")
    record, cases = read_pool(pool), []
    order = record["space"]["transpose_forward"]
    for case in record["provenance"]["cases"]:
        file = nib.load(Path(dataset, "imagesTr", f"{case['id']}_0000.nii.gz"))
        label = np.asarray(nib.load(Path(dataset, "labelsTr", f"{case['id']}.nii.gz")).dataobj) == 1
        image = np.asarray(file.dataobj, np.float32)
        spacing = np.array(file.header.get_zooms()[::-1])[order]
        image, label = (array.T.transpose(order) for array in ((image - image.mean()) / image.std(), label))
        cases.append((image[None], label.astype(np.int16), spacing.tolist()))
    bank, rng = make_bank(cases, 2, [1]), np.random.default_rng(0)
    figure, axes = plt.subplots(4, COLUMNS, figsize=(COLUMNS * 1.25, 8))
    real = [cases[i] for i in np.linspace(0, len(cases) - 1, COLUMNS).round().astype(int)]
    for axis, (image, label, spacing) in zip(axes[0], real, strict=True):
        plane = int(label.sum(axis=(1, 2)).argmax())
        draw(axis, image[0, plane], label[plane], spacing)
    for axis in axes[1]:
        while (transplant := bank.draw(rng, 0.0)) is None:
            pass
        image, label, spacing = cases[transplant.case]
        patch, start = render(bank, transplant, label.shape[1:], None), np.zeros(2, int)
        pasted = blend(image[:, transplant.plane], patch, start)[0]
        draw(axis, pasted, relabel(label[transplant.plane], patch, start), spacing)
    names = [sample["id"] for sample in record["samples"] if sample.get("decision", "keep") == "keep"]
    for axis, place in zip(axes[2:].flat, np.linspace(0, len(names) - 1, 2 * COLUMNS), strict=True):
        image, label = load_sample(pool, names[int(place)], 1)
        draw(axis, image[0, 0], label[0] == 1, record["space"]["spacing"])
    for axis, words in zip(axes[:3, 0], ("real", "a lesion of another patient", "a painted lesion"), strict=True):
        axis.set_title(words, fontsize=9, loc="left")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.97, 0.03, 0.1)
    figure.savefig(output, dpi=100)


def draw(axis, image, label, spacing) -> None:
    axis.imshow(image, cmap="gray_r", vmin=image.min(), vmax=np.percentile(image, 99.8), aspect=spacing[1] / spacing[2])
    axis.axis("off")
    if label.any():
        axis.contour(label, [0.5], colors="red", linewidths=0.8)


if __name__ == "__main__":
    main(*sys.argv[1:])
