"""Turn a model trained with synthetic cases into one that stock nnU-Net uses without this plugin."""

import os
import secrets
import shutil
import sys
from contextlib import redirect_stdout
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
# No folder `validation`: nnUNetv2_find_best_configuration would look for its predictions.
_FOLD_FILES = ("debug.json", "progress.png", "synthaug_epochs.jsonl", "synthaug_seen.json")
_CROSSVAL = "crossval_results_folds_"  # where nnUNetv2_find_best_configuration writes what it found
_POSTPROCESSING = ("postprocessing.pkl", "postprocessing.json", "plans.json", "dataset.json")


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
    The postprocessing comes with it, the validation does not: run nnUNetv2_find_best_configuration on the model before.
    Raises `InputError` when the folder is no trained model of this plugin.

    Args:
        model_folder: The trained model, nnUNet_results/DATASET/nnUNetTrainerSynthAug__PLANS__CONFIGURATION, or of a
            trainer that was made with SynthAugMixin (nnUNet_extTrainer says where it is).
        output: The folder to write; by default nnUNetTrainer__PLANS__CONFIGURATION beside the model, named by the
            trainer of nnU-Net that the model's is made from.
        checkpoint: The file name of the checkpoints to export, from every fold that has it.
        overwrite: Replace an earlier export; a folder with anything else in it stays.

    Example:
        synthaug export-model nnUNetTrainerSynthAug__nnUNetPlansSynthAug__2d_syn50
    """
    model_folder = Path(os.path.abspath(model_folder))  # "." has no name; what a link is called stays
    folds = sorted(file.parent for file in model_folder.glob(f"fold_*/{checkpoint}")) if checkpoint else []
    if not folds or not (model_folder / "plans.json").is_file():
        raise InputError(
            f"no plans.json or no fold with {checkpoint} in {model_folder}",
            "a trained model folder (trainer__plans__configuration)",
            "check the path, or finish the training",
        )
    for name in _MODEL_FILES:
        read_json(model_folder / name, "train again")
    trainer = str(load_checkpoint(folds[0] / checkpoint).get("trainer_name"))
    stock = _stock_trainer(trainer, folds[0] / checkpoint)
    if output is None:
        output = model_folder.with_name(model_folder.name.replace(f"{trainer}__", f"{stock}__", 1))
    output = Path(output)
    _check_output(output, model_folder, overwrite)
    output = output.resolve()  # behind a link
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    temporary.mkdir()
    try:
        for name in _MODEL_FILES:
            shutil.copyfile(model_folder / name, temporary / name)
        for fold in folds:
            _export_fold(fold, temporary / fold.name, checkpoint, trainer, stock)
        _export_postprocessing(model_folder, temporary)
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


def _stock_trainer(name: str, file: Path) -> str:
    """Return the name of nnU-Net's trainer behind `SynthAugMixin` in the trainer of this name.

    Raises:
        InputError: no such trainer is found, or it has no mixin, or a network that nnU-Net's trainer does not build.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from .trainer import SynthAugMixin

    if name == TRAINER:
        return STOCK_TRAINER
    trainer: Any = None
    if name != STOCK_TRAINER:
        try:
            with redirect_stdout(sys.stderr):  # nnU-Net says where it searches
                trainer = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise InputError(
                f"{file} of the trainer {name}, which cannot be found ({error})",
                f"checkpoints of {TRAINER}, or of a trainer made with SynthAugMixin",
                "set nnUNet_extTrainer as for the training",
            ) from None
    if trainer is None or not issubclass(trainer, SynthAugMixin):
        raise InputError(
            f"{file} of the trainer {name}",
            f"checkpoints of {TRAINER}, or of a trainer made with SynthAugMixin",
            "export a model that was trained with this plugin",
        )
    behind = trainer.__mro__[trainer.__mro__.index(SynthAugMixin) + 1 :]
    stock = next(kind for kind in behind if f"{kind.__module__}.".startswith("nnunetv2.training.nnUNetTrainer."))
    if trainer.build_network_architecture is not stock.build_network_architecture:
        raise InputError(
            f"{file} of the trainer {name}, which builds a network of its own",
            f"a trainer with the network of {stock.__name__}",
            f"use the model with -tr {name}: stock nnU-Net cannot build its network",
        )
    return stock.__name__


def _export_fold(fold: Path, target: Path, checkpoint: str, trainer: str, stock: str) -> None:
    content = load_checkpoint(fold / checkpoint)
    if content.get("trainer_name") != trainer:
        raise InputError(
            f"{fold / checkpoint} of the trainer {content.get('trainer_name')}",
            f"checkpoints of {trainer}, as in the other folds",
            "train the fold again",
        )
    refuse_broken(content, fold / checkpoint)
    target.mkdir()
    torch.save({**content, "trainer_name": stock}, target / checkpoint)
    for name in _FOLD_FILES:
        if (fold / name).is_file():
            shutil.copyfile(fold / name, target / name)


def _export_postprocessing(model_folder: Path, target: Path) -> None:
    """Copy what nnUNetv2_find_best_configuration found for folds that are all exported."""
    for file in sorted(model_folder.glob(f"{_CROSSVAL}*/{_POSTPROCESSING[0]}")):
        folder = file.parent
        if all((target / f"fold_{fold}").is_dir() for fold in folder.name.removeprefix(_CROSSVAL).split("_")):
            (target / folder.name).mkdir()
            for name in _POSTPROCESSING:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / folder.name / name)


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


def refuse_broken(content: dict[str, Any], file: Path) -> None:
    """Raise `InputError` when the weights of a checkpoint of nnU-Net are not finite."""
    weights = content.get("network_weights")
    for name, value in (weights if isinstance(weights, dict) else {}).items():
        if torch.is_tensor(value) and not value.isfinite().all():
            raise InputError(
                f"{file} with values in {name} that are not finite",
                "weights of a training that ended well",
                "train again, or take other weights",
            )
