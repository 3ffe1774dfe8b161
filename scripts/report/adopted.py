"""`synthaug adopt`: a pool of another program's images, and its sample sheet."""

from __future__ import annotations

from pathlib import Path

from ..pool.adopt import adopt_pool, user_word
from ..pool.writing import read_pool
from .pool import pool_cases, pool_sheet


def adopt(
    folder: str | Path,
    pool: str | Path,
    dataset_dir: str | Path,
    made_by: str,
    saw: str | Path = "unknown",
    plans: str = "nnUNetPlans",
    configuration: str | None = None,
    preprocessed: bool = False,
) -> str:
    """Make a pool of images and masks from any other program, such as NV-Generate or your own GAN.

    Geometry, labels and channels are checked against the data set; nothing is written where they do not fit. Volumes
    for a data set in nnUNet_preprocessed are preprocessed as its cases were. Prints what was recorded.

    Args:
        folder: Holds imagesTr and labelsTr, or images and labels: NIfTI files in nnU-Net's naming.
        pool: The pool's folder, to be made.
        dataset_dir: The data set that the pool is for, raw or preprocessed.
        made_by: The program or model, named in every report.
        saw: Whom of the data set the generator was trained on: none, all, unknown (counts as all), or a text file with
            a case id in each line. The pool may not train a model that is validated on one of them.
        plans: The plans of a preprocessed data set.
        configuration: Its configuration; by default 2d for slices, 3d_fullres for volumes.
        preprocessed: The files have axes, spacing and intensities of the preprocessed data set already.

    Example:
        synthaug adopt gan_output pool_gan --dataset_dir /data/nnUNet_raw/Dataset501_LGG --made_by MyGAN --saw none
    """
    made = adopt_pool(folder, pool, dataset_dir, made_by, saw, plans, configuration, preprocessed)
    record = read_pool(made)
    pool_sheet(made, pool_cases(made, dataset_dir))
    count = len(record["samples"])
    return f"{count} sample{'s' * (count != 1)}. {user_word(record)}\n{made}"
