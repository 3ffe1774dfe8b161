"""export-model: stock nnU-Net predicts the same to the bit, in a process that cannot import the plugin."""

import json
import os
from pathlib import Path

import nnunet_plugin
import numpy as np
import pytest
import torch
from nnunet_plugin.__main__ import main
from nnunet_plugin.errors import InputError
from nnunet_plugin.export import export_model
from nnunet_plugin.import_pool import add_pool

from ..processes import python
from .test_safety import trained

PREDICT = """
import sys
if sys.argv[4] == "stock":
    sys.modules["nnunet_plugin"] = None  # importing it fails, wherever it is installed
import numpy as np, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
torch.set_num_threads(1)
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,))
image = np.load(sys.argv[2])
_, probabilities = predictor.predict_single_npy_array(image, {"spacing": [3, 1, 1]}, None, None, True)
np.save(sys.argv[3], probabilities)
"""


@pytest.fixture
def model(make_pool, make_trainer):
    training = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0}
    result = add_pool(make_pool(), 901, 0, plans="nnUNetPlansCPU", training=training)
    trainer = make_trainer(result["configuration"])
    trainer.run_training()
    return Path(trainer.output_folder_base)


@pytest.mark.slow
def test_predictions_are_bit_identical_without_the_plugin(model, nnunet, capsys):
    assert main(["export-model", str(model)]) == 0
    exported = Path(capsys.readouterr().out.splitlines()[-1])
    assert exported == model.with_name("nnUNetTrainer__nnUNetPlansCPUSynthAug__2d_syn50")
    rng = np.random.default_rng(0)
    np.save(nnunet / "image.npy", (100 * rng.random((1, 4, 30, 30))).astype(np.float32))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with_plugin = {
        **environment,
        "PYTHONPATH": str(Path(nnunet_plugin.__file__).parents[1]),
        "nnUNet_extTrainer": str(nnunet_plugin.ext_path()),
    }
    for folder, kind, env in ((model, "plugin", with_plugin), (exported, "stock", environment)):
        files = [str(folder), str(nnunet / "image.npy"), str(nnunet / f"{kind}.npy")]
        done = python("-c", PREDICT, *files, kind, env={**env, "OMP_NUM_THREADS": "1"}, cwd=nnunet)
        assert done.returncode == 0, done.stderr
    ours, stock = (np.load(nnunet / f"{kind}.npy") for kind in ("plugin", "stock"))
    assert ours.shape == (2, 4, 30, 30) and 0.01 < ours.std() and np.array_equal(ours, stock)


@pytest.mark.slow
def test_export_changes_the_trainer_alone(model, nnunet):
    exported = export_model(model, nnunet / "exported")
    file = "fold_0/checkpoint_final.pth"
    ours, theirs = (torch.load(folder / file, weights_only=False) for folder in (model, exported))
    assert theirs.pop("trainer_name") == "nnUNetTrainer" and ours.pop("trainer_name") == "nnUNetTrainerSynthAug"
    assert ours.keys() == theirs.keys() and ours["logging"] == theirs["logging"]
    weights = [content["network_weights"] for content in (ours, theirs)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert json.loads((exported / "plans.json").read_text()) == json.loads((model / "plans.json").read_text())
    assert (exported / "fold_0" / "progress.png").is_file()


@pytest.mark.slow
def test_bad_models_are_refused(model, nnunet):
    with pytest.raises(InputError, match="no plans.json or no fold"):
        export_model(nnunet)
    with pytest.raises(InputError, match="no fold with checkpoint_latest"):
        export_model(model, checkpoint="checkpoint_latest.pth")
    output = export_model(model)
    with pytest.raises(InputError, match="exists"):
        export_model(model)
    with pytest.raises(InputError, match="of the trainer nnUNetTrainer"):
        export_model(output, nnunet / "twice")
    file = model / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="a checkpoint written by nnU-Net"):
        export_model(model, nnunet / "broken")
    assert not (nnunet / "twice").exists() and not (nnunet / "broken").exists()
    assert not list(nnunet.glob("*.partial"))


TRAINERS = """
from nnunet_plugin.trainer import SynthAugMixin
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

class OfAVariant(SynthAugMixin, nnUNetTrainerNoDA): pass
class Ours(nnUNetTrainerNoDA): pass
class OfOurs(SynthAugMixin, Ours): pass
class Inherits(OfAVariant): pass
class OwnNetwork(SynthAugMixin, nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*args): ...
"""


# nnU-Net's search imports all its trainers, one of them timm and its torch.jit decorators.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_trainers_made_with_the_mixin_are_exported_as_what_is_behind_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/ours.py").write_text(TRAINERS)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    for name in ("OfAVariant", "OfOurs", "Inherits"):
        exported = export_model(trained(tmp_path / name / f"{name}__p__2d", name))
        assert exported == tmp_path / name / "nnUNetTrainerNoDA__p__2d"
        assert torch.load(exported / "fold_0/checkpoint_final.pth")["trainer_name"] == "nnUNetTrainerNoDA"
    assert not capsys.readouterr().out
    for name, said in (
        ("OwnNetwork", "a network of its own"),
        ("Ours", "of the trainer Ours"),
        ("No", "cannot be found"),
    ):
        with pytest.raises(InputError, match=said):
            export_model(trained(tmp_path / name / f"{name}__p__2d", name))
        assert len(list((tmp_path / name).iterdir())) == 1
    mixed = trained(tmp_path / "mixed" / "nnUNetTrainerSynthAug__p__2d")
    (trained(tmp_path / "other", "OfAVariant") / "fold_0").rename(mixed / "fold_1")
    with pytest.raises(InputError, match="of the trainer OfAVariant; .* as in the other folds"):
        export_model(mixed)


def test_the_model_may_be_where_one_is(tmp_path, monkeypatch):
    model = trained(tmp_path / "nnUNetTrainerSynthAug__p__2d")
    for folder, path in ((model, "."), (model / "fold_0", "..")):
        monkeypatch.chdir(folder)
        assert export_model(path, overwrite=True) == tmp_path / "nnUNetTrainer__p__2d"


def test_postprocessing_comes_with_the_folds_that_it_is_of(tmp_path):
    """And no validation folder without its predictions, in which nnU-Net would look for them."""
    model = trained(tmp_path / "nnUNetTrainerSynthAug__p__2d")
    for folder in ("fold_0/validation", *(f"crossval_results_folds_{folds}" for folds in ("0", "0_1", "all"))):
        (model / folder).mkdir()
        for name in ("summary.json", "postprocessing.pkl", "postprocessing.json", "plans.json", "case_1.nii.gz"):
            (model / folder / name).write_text(f"{folder} {name}")
    (model / "crossval_results_folds_0/postprocessed").mkdir()
    exported = export_model(model)
    found = {file.relative_to(exported).as_posix() for file in exported.rglob("*") if file.is_file()}
    assert {name for name in found if "/" in name} == {"fold_0/checkpoint_final.pth", *(
        f"crossval_results_folds_0/{name}" for name in ("postprocessing.pkl", "postprocessing.json", "plans.json")
    )}  # fmt: skip
    assert all((exported / name).read_bytes() == (model / name).read_bytes() for name in found if "crossval" in name)
    assert not (exported / "fold_0/validation").exists()
    export_model(model, overwrite=True)
