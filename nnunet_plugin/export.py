"""Turn a model trained with synthetic cases into one that stock nnU-Net uses without this plugin."""

import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .import_pool import TRAINER
from .options import checked
from .pool_format import files_sha256
from .preprocessed import read_json, write_json

STOCK_TRAINER = "nnUNetTrainer"
EXPORT_RECORD = "synthaug_export.json"
_FORMAT = "synthaug-export"
_MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_FOLD_FILES = ("debug.json", "progress.png", "synthaug_epochs.jsonl", "synthaug_seen.json", "validation/summary.json")


@checked
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
        overwrite: Replace an earlier export; a folder with anything else in it stays.

    Example:
        synthaug export-model nnUNetTrainerSynthAug__nnUNetPlansSynthAug__2d_syn50
    """
    model_folder = Path(model_folder)
    if output is None:
        output = model_folder.with_name(model_folder.name.replace(f"{TRAINER}__", f"{STOCK_TRAINER}__", 1))
    output = Path(output)
    folds = sorted(file.parent for file in model_folder.glob(f"fold_*/{checkpoint}")) if checkpoint else []
    if not folds or not (model_folder / "plans.json").is_file():
        raise InputError(
            f"no plans.json or no fold with {checkpoint} in {model_folder}",
            "a trained model folder (trainer__plans__configuration)",
            "check the path, or finish the training",
        )
    for name in _MODEL_FILES:
        read_json(model_folder / name, "train again")
    _check_output(output, model_folder, overwrite)
    output = output.resolve()  # behind a link
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    temporary.mkdir()
    try:
        for name in _MODEL_FILES:
            shutil.copyfile(model_folder / name, temporary / name)
        for fold in folds:
            _export_fold(fold, temporary / fold.name, checkpoint)
        record = {"format": _FORMAT, "format_version": 1, "files": _hashes(temporary)}
        write_json(temporary / EXPORT_RECORD, record)
        if output.exists():
            _check_output(output, model_folder, overwrite)  # it may have appeared or changed since
            output.rename(former)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    shutil.rmtree(former, ignore_errors=True)
    return output


def _check_output(output: Path, model_folder: Path, overwrite: bool) -> None:
    """Raise `InputError` unless the output is free, or an export that nobody has changed and that may be replaced."""
    target, source = output.resolve(), model_folder.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise InputError(
            f"the output {output} is the model, around it or within it", "a folder apart from it", "choose another"
        )
    if not output.exists():
        return
    if not overwrite:
        raise InputError(f"the output {output} exists", "a folder that does not exist", "choose another, or overwrite")
    record = read_json(output / EXPORT_RECORD, "choose another output") if output.is_dir() else {}
    if record.get("format") != _FORMAT or record.get("files") != _hashes(output):
        raise InputError(
            f"the output {output} holds what export-model did not write",
            f"an unchanged export (with {EXPORT_RECORD}), or a folder that does not exist",
            "choose another output, or move it away",
        )


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder but its record; a link counts as foreign."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()]
    return {
        path.relative_to(folder).as_posix(): "link" if path.is_symlink() else files_sha256([path])
        for path in files
        if path != folder / EXPORT_RECORD
    }


def _export_fold(fold: Path, target: Path, checkpoint: str) -> None:
    content = load_checkpoint(fold / checkpoint)
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


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net, whose log holds numpy scalars, without running any code in it."""
    scalars = [np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_]
    make_scalar = np.float64(0.0).__reduce__()[0]  # its module differs between numpy 1 and 2
    allowed: list[Any] = [make_scalar, np.dtype, *scalars, *{type(np.dtype(scalar)) for scalar in scalars}]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file}: {str(error)[:300]}", "a checkpoint written by nnU-Net's training", "train the fold again"
        ) from None
