"""Losses and pictures of every bundle reach TensorBoard, and MLflow when a run is given `--tracking mlflow`."""

import json
import os
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.phantom.dataset import write_phantom

from ..processes import python
from .test_federated import BUNDLES, MORE, NETWORKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow asks SQLAlchemy for what it will not keep
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store without runs; MLflow makes one by all the migrations that it ever had, in 2 s."""
    mlflow = pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow keeps its runs in SQLite")
    folder = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db").search_experiments()
    return folder / "mlruns.db"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_pictures_can_be_followed(name, tmp_path, store):
    """Into a new store, or for all bundles but one into a store that is there."""
    mlflow = pytest.importorskip("mlflow")
    if name != next(iter(NETWORKS)):
        (tmp_path / "run/eval").mkdir(parents=True)
        shutil.copyfile(store, tmp_path / "run/eval/mlruns.db")
    dataset = write_phantom(tmp_path / "Dataset801_PhantomFLAIR", cases=5, test_cases=1, shape=(32, 32, 8))
    known = json.loads((BUNDLES / name / "configs/train.json").read_text())
    settings = {
        "dataset_dir": dataset, "bundle_root": tmp_path / "run", "max_epochs": 2, "autoencoder_epochs": 1,
        "batch_size": 4, "val_interval": 1, "grid_interval": 1, **NETWORKS[name], **MORE.get(name, {}),
    }  # fmt: skip
    words = [str(word) for key, value in settings.items() if key in known for word in (f"--{key}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/train.json", *words, "--tracking", "mlflow"]
    done = python(*command, cwd=BUNDLES / name, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    board = EventAccumulator(str(tmp_path / "run/models/tensorboard")).Reload().Tags()
    assert "train/loss" in board["scalars"] and [tag for tag in board["scalars"] if tag.startswith("val_")]
    assert board["images"] == ["samples"]

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/eval/mlruns.db")
    experiment = client.get_experiment_by_name("monai_experiment")
    runs = client.search_runs(experiment.experiment_id)
    metrics = {key for run in runs for key in run.data.metrics}
    assert "train_loss" in metrics and [key for key in metrics if key.startswith("val_")]
    artifacts = {file.path for run in runs for file in client.list_artifacts(run.info.run_id)}
    assert "samples.png" in artifacts
