"""The LSGAN bundle: sizes of its presets, training of slices and of volumes, exact resume, sampling."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.networks.lsgan import Discriminator
from scripts.pool.writing import read_pool

from ..data.toy import write_preprocessed
from ..processes import python

BUNDLE = Path(__file__).resolve().parents[2] / "bundles/lsgan"
TINY = {
    "channels": [8, 8, 8], "discriminator_channels": [8, 8], "latent_size": 4, "batch_size": 2, "val_interval": 2,
    "grid_interval": 2, "collapse_threshold": 2.0,
}  # fmt: skip
SLICES, VOLUMES = {"spatial_size": [24, 24]}, {"spatial_size": [24, 24, 8]}


def run(config: str, root: Path, overlay: str | None = None, **overrides):
    files = [f"configs/{config}.json"] + ([f"configs/{overlay}.json"] if overlay else [])
    known = set().union(*(json.loads((BUNDLE / file).read_text()) for file in files))
    given = {"bundle_root": root, **{key: value for key, value in {**TINY, **overrides}.items() if key in known}}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    done = python("-m", "monai.bundle", "run", "--config_file", files, *words, cwd=BUNDLE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def built(tmp_path, *overlays: str):
    """Generator and settings of a preset; the tensors hold no memory."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in ("inference", *overlays)])
    parser["bundle_root"] = str(tmp_path)
    train = json.loads((BUNDLE / "configs/train.json").read_text())
    with torch.device("meta"):
        generator = parser.get_parsed_content("network_def")
        size, channels = (
            parser.get_parsed_content("spatial_size"),
            parser.get("discriminator_channels", train["discriminator_channels"]),
        )
        discriminator = Discriminator(parser.get_parsed_content("num_channels"), size, channels)
    return generator, discriminator, size


def parameters(*networks) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def rows(root: Path) -> list[dict]:
    with open(root / "models/losses.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_network_def_is_what_the_metadata_says(tmp_path):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/inference.json"))
    parser["bundle_root"] = str(tmp_path)
    network = parser.get_parsed_content("network_def").eval()
    formats = json.loads((BUNDLE / "configs/metadata.json").read_text())["network_data_format"]
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert network.latent_shape == (given["num_channels"], *given["spatial_shape"])
    noise = torch.randn(2, *network.latent_shape)
    out = network(noise)
    assert out.shape == (2, made["num_channels"], *made["spatial_shape"])
    assert out.min() >= made["value_range"][0] and out.max() <= made["value_range"][1]
    assert torch.allclose(torch.jit.trace(network, noise)(noise), out)


@pytest.mark.parametrize(
    ("overlays", "size"),
    [
        ([], [64, 64]),
        (["volume"], [64, 64, 32]),
        (["evening"], [128, 128]),
        (["evening_volume"], [64, 64, 64]),
        (["paper"], [128, 128]),
        (["paper_volume"], [192, 192, 96]),
    ],
)
def test_presets_make_their_grid(overlays, size, tmp_path):
    generator, discriminator, given = built(tmp_path, *overlays)
    assert given == size
    made = generator(torch.empty(2, *generator.latent_shape, device="meta"))
    assert made.shape == (2, 2, *size) and discriminator(made).shape == (2, 1)


def test_paper_volume_has_the_size_of_the_paper(tmp_path):
    """71 M parameters (Kebaili et al. 2024, SBLDM, Table 1): generator and discriminator together."""
    generator, discriminator, _ = built(tmp_path, "paper_volume")
    assert parameters(generator, discriminator) == pytest.approx(71e6, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("overlay", "size"), [(None, SLICES), ("volume", VOLUMES)])
def test_train_then_sample(overlay, size, dataset, tmp_path):
    done = run("train", tmp_path, overlay, dataset_dir=dataset, max_epochs=2, **size)
    models = tmp_path / "models"
    record = json.loads((models / "provenance.json").read_text())
    assert record["bundle"]["name"] == "lsgan" and len(record["cases"]) == 4
    assert record["space"]["configuration"] == ("3d_fullres" if overlay else "2d")
    assert record["training"]["epochs"] == 2
    assert "mode collapse" in done.stderr  # the threshold of the toy settings says so of every generator
    first, second = rows(tmp_path)
    assert {"loss", "generator", "discriminator", "score_real", "score_fake"} <= set(first)
    for name in ("diversity", "mask_diversity"):  # every second epoch
        assert first[name] == "" and float(second[name]) == record["training"][name]
    board = EventAccumulator(str(models / "tensorboard")).Reload().Tags()
    assert {"train/generator", "train/diversity", "val_score"} <= set(board["scalars"])
    assert board["images"] == ["samples"] and (models / "samples.png").is_file()
    run("inference", tmp_path, overlay, num_samples=3, min_foreground=0, **size)
    pool = read_pool(tmp_path / "pool")
    assert len(pool["samples"]) == 3 and pool["dimension"] == (3 if overlay else 2)
    assert (tmp_path / "pool/samples.png").is_file()


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(dataset, tmp_path):
    more = {"dataset_dir": dataset, **SLICES}
    run("train", tmp_path / "straight", max_epochs=4, **more)
    run("train", tmp_path / "resumed", max_epochs=2, **more)
    run("train", tmp_path / "resumed", max_epochs=4, **more)
    model = torch.load(tmp_path / "straight/models/model.pt", weights_only=True)
    a, b = (torch.load(tmp_path / n / "models/checkpoint.pt", weights_only=True) for n in ("straight", "resumed"))
    assert {"network", "optimizer", "discriminator", "discriminator_optimizer", "average"} < set(a)
    for name in ("network", "discriminator", "average", "best"):
        for key in a[name]:  # a loss that is not compared is NaN
            assert torch.allclose(a[name][key], b[name][key], rtol=0, atol=0, equal_nan=True), (name, key)
    for name in ("optimizer", "discriminator_optimizer"):
        for ours, theirs in zip(a[name]["state"].values(), b[name]["state"].values(), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    # what is sampled from is the average where held-out items liked it best, not the last weights
    assert all(torch.equal(model[key], a["best"][f"model.{key}"]) for key in model)
    assert not all(torch.equal(model[key], a["network"][key]) for key in model)
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed") and len(rows(tmp_path / "straight")) == 4
    assert all(math.isfinite(float(row["loss"])) for row in rows(tmp_path / "resumed"))
