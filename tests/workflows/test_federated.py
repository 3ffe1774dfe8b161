"""Federated learning: every bundle under MONAI's client, and rounds of two clients whose weights are averaged."""

import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from monai.engines import SupervisedTrainer
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from scripts.data.provenance import write_provenance
from scripts.phantom.dataset import write_phantom
from scripts.pool.writing import read_pool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
]

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
HVAE = {"spatial_size": [24, 24], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2,
        "attention_heads": 1, "num_leapfrog_steps": 1}  # fmt: skip
LSGAN = {"spatial_size": [32, 32], "channels": [8, 8], "discriminator_channels": [8, 8]}
DIFFUSION = {"spatial_size": [16, 16], "channels": [8, 8], "attention_levels": [False, False], "latent_channels": 2,
             "num_res_blocks": 1, "denoiser_channels": [8, 8], "denoiser_res_blocks": 1,
             "denoiser_attention": [False, False], "norm_groups": 4, "num_steps": 4}  # fmt: skip
SEGMENTATION = {"spatial_size": [32, 32], "channels": [4, 4, 4, 4, 8]}
VOLUMES = DIFFUSION | {"spatial_size": [24, 24, 8], "chunk_size": 3}
NETWORKS = {"dhvae": HVAE, "hvae": HVAE, "lsgan": LSGAN, "ldm": DIFFUSION, "sbldm": VOLUMES,
            "segmentation": SEGMENTATION}  # fmt: skip
MORE = {"dhvae": {"feature_steps": 2, "discriminator_start": 1}, "segmentation": {"iterations_per_epoch": 3}}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    return [
        write_phantom(
            folder / f"site{seed}/Dataset801_PhantomFLAIR", cases=5, test_cases=1, seed=seed, shape=(32, 32, 8)
        )
        for seed in (1, 2)
    ]


@pytest.fixture(autouse=True)
def in_the_bundle(request, monkeypatch):
    monkeypatch.chdir(BUNDLES / request.getfixturevalue("name"))


def make_client(name: str, site: int, dataset: Path, folder: Path) -> MonaiAlgo:
    """A client with its own copy of the bundle, as a federated system hands it out."""
    bundle = folder / f"client{site}"
    shutil.copytree(BUNDLES / name / "configs", bundle / "configs")
    settings = {"dataset_dir": str(dataset), "max_epochs": 2, "batch_size": 4, **NETWORKS[name], **MORE.get(name, {})}
    evaluation = settings | ({"model_space": "$ModelSpace.of(@data)"} if name == "segmentation" else {})
    client = MonaiAlgo(str(bundle), send_weight_diff=False, train_kwargs={**settings}, eval_kwargs=evaluation)
    client.initialize({ExtraItems.CLIENT_NAME: f"site{site}"})
    return client


def snapshot(weights: dict) -> dict:
    return {key: torch.clone(value) for key, value in weights.items()}


def mean(first: dict, second: dict) -> dict:
    """Of all floating-point entries; counters are those of the first client."""
    return {k: (v + second[k]) / 2 if v.is_floating_point() else v for k, v in first.items()}


def make_record(clients: list[MonaiAlgo], weights: dict, folder: Path) -> Path:
    """What a server would leave: the averaged weights, and the record of a site with the cases of all sites."""
    folder.mkdir()
    torch.save(weights, folder / "model.pt")
    first, second = (json.loads((Path(c.bundle_root) / "models/provenance.json").read_text()) for c in clients)
    assert {case["sha256"] for case in first["cases"]}.isdisjoint(case["sha256"] for case in second["cases"])
    record = {**first, "cases": first["cases"] + second["cases"]}
    write_provenance(folder / "provenance.json", record, folder / "model.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_two_sites_train_one_network_that_samples_or_predicts(name, phantoms, tmp_path):
    """Each client begins its rounds with the weights it is given, although it holds a checkpoint of its own."""
    clients = [make_client(name, site, dataset, tmp_path) for site, dataset in enumerate(phantoms)]
    begun = []
    for client in clients:
        client.trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: begun.append(snapshot(e.network.state_dict())))
    weights = snapshot(clients[0].get_weights().weights)
    for _ in range(2 if name in ("dhvae", "segmentation") else 1):
        given, ended = weights, []
        for client in clients:
            client.train(ExchangeObject(weights=given))
            # how wide the latents of its own cases are, a site measures at its first round
            assert all(torch.equal(given[k], v) for k, v in begun[-1].items() if k != "latent_std")
            part = client.get_weights()
            assert part.statistics["num_executed_iterations"] > 0
            ended.append(snapshot(part.weights))
        assert any(not torch.equal(ended[0][key], ended[1][key]) for key in given)
        weights = mean(*ended)
    metrics = clients[0].evaluate(ExchangeObject(weights=weights)).metrics
    assert metrics and all(math.isfinite(value) for value in metrics.values())

    models = make_record(clients, weights, tmp_path / "averaged")
    known = json.loads(Path("configs/inference.json").read_text())
    settings = {"num_samples": 2, "min_foreground": 0, "dataset_dir": str(phantoms[0]), **NETWORKS[name]}
    workflow = create_workflow(
        config_file="configs/inference.json", workflow_type="infer", bundle_root=str(tmp_path), ckpt_dir=str(models),
        logging_file=False, **{key: value for key, value in settings.items() if key in known},
    )  # fmt: skip
    workflow.run()
    if name == "segmentation":
        made, image = (nib.load(path) for path in ((tmp_path / "predictions/flair_test_000.nii.gz"),
                                                   (phantoms[0] / "imagesTs/flair_test_000_0000.nii.gz")))  # fmt: skip
        assert made.shape == image.shape and np.allclose(made.affine, image.affine)
    else:
        pool = read_pool(tmp_path / "pool")
        assert len(pool["samples"]) == 2 and len(pool["provenance"]["cases"]) == 8


@pytest.mark.parametrize("name", NETWORKS)
def test_training_as_a_workflow_has_every_property(name, phantoms, tmp_path):
    workflow = create_workflow(
        config_file="configs/train.json", workflow_type="train", bundle_root=str(tmp_path), logging_file=False,
        dataset_dir=str(phantoms[0]), **NETWORKS[name], **MORE.get(name, {}),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.trainer, SupervisedTrainer) and len(workflow.train_dataset) > 0
