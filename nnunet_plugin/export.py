"""Turn a model trained with synthetic cases into one that stock nnU-Net uses without this plugin."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .import_pool import TRAINER
from .preprocessed import read_json

STOCK_TRAINER = "nnUNetTrainer"
_FOLD_FILES = ("debug.json", "progress.png", "synthaug_epochs.jsonl", "validation/summary.json")


def export_model(
    model_folder: str | Path,
    output: str | Path | None = None,
    checkpoint: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> Path:
    """Copy a trained model to where stock nnU-Net finds it, under the name of the stock trainer.

    The network is nnU-Net's own, so the predictions are the same to the bit. Returns the folder written,
    which nnUNetv2_predict uses with -tr nnUNetTrainer and nnUNetv2_predict_from_modelfolder by its path.
    Raises `InputError` when the folder is no trained model of this plugin.

    Args:
        model_folder: The trained model, nnUNet_results/DATASET/nnUNetTrainerSynthAug__PLANS__CONFIGURATION.
        output: The folder to write; by default nnUNetTrainer__PLANS__CONFIGURATION beside the model.
        checkpoint: The file name of the checkpoints to export, from every fold that has it.
        overwrite: Replace an existing folder.

    Example:
        synthaug export-model nnUNetTrainerSynthAug__nnUNetPlansSynthAug__2d_syn50
    """
    model_folder = Path(model_folder)
    if output is None:
        output = model_folder.with_name(model_folder.name.replace(f"{TRAINER}__", f"{STOCK_TRAINER}__", 1))
    output = Path(output)
    folds = sorted(file.parent for file in model_folder.glob(f"fold_*/{checkpoint}"))
    if not folds or not (model_folder / "plans.json").is_file():
        raise InputError(
            f"no plans.json or no fold with {checkpoint} in {model_folder}",
            "a trained model folder (trainer__plans__configuration)",
            "check the path, or finish the training",
        )
    if output.resolve() == model_folder.resolve() or (output.exists() and not overwrite):
        raise InputError(f"the output {output} exists", "a folder that does not exist", "choose another, or overwrite")
    read_json(model_folder / "plans.json", "train again")
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(model_folder / name, temporary / name)
        for fold in folds:
            _export_fold(fold, temporary / fold.name, checkpoint)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)
    return output


def _export_fold(fold: Path, target: Path, checkpoint: str) -> None:
    content = _load(fold / checkpoint)
    if content.get("trainer_name") != TRAINER:
        raise InputError(
            f"{fold / checkpoint} of the trainer {content.get('trainer_name')}",
            f"checkpoints of {TRAINER}",
            "export a model that was trained with this plugin",
        )
    target.mkdir()
    torch.save({**content, "trainer_name": STOCK_TRAINER}, target / checkpoint)
    for name in _FOLD_FILES:
        if (fold / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(fold / name, target / name)


def _load(file: Path) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net, whose log holds numpy scalars, without running any code in it."""
    scalars = [np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_]
    make_scalar = np.float64(0.0).__reduce__()[0]  # its module differs between numpy 1 and 2
    allowed: list[Any] = [make_scalar, np.dtype, *scalars, *{type(np.dtype(scalar)) for scalar in scalars}]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file}: {str(error)[:300]}",
            "a checkpoint written by nnU-Net's training",
            "train the fold again",
        ) from None
