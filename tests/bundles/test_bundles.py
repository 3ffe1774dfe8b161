"""Every bundle and overlay: parses, takes its arguments, trains, resumes exactly, samples."""

import json
import signal
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.pool.writing import read_pool
from scripts.runtime.errors import InputError
from scripts.runtime.settings import refuse_unknown_overrides

from ..data.toy import write_preprocessed
from ..pool.toy_generator import contents
from ..processes import python, start, wait_until

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent for path in (ROOT / "bundles").glob("*/configs"))
GENERATORS = [path.name for path in BUNDLES if '"sampler"' in (path / "configs/inference.json").read_text()]
OVERLAYS = {"dhvae": ["hvae_disc", "hvae_perc", "paper"], "hvae": ["vae", "paper"]}
# Sums are rounded in another order with another number of threads; equality to the bit needs the same.
TINY = {
    "spatial_size": [24, 24], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2, "attention_heads": 1,
    "num_leapfrog_steps": 1, "batch_size": 4, "val_interval": 1, "grid_interval": 100,
}  # fmt: skip


def bundle(name: str) -> Path:
    return ROOT / "bundles" / name


def run(name: str, config: str, root: Path, overlay: str | None = None, check=True, ranks=1, **overrides):
    files = [f"configs/{config}.json"] + ([f"configs/{overlay}.json"] if overlay else [])
    given = {"bundle_root": str(root), **TINY, **overrides}
    if config == "inference":
        known = json.loads((bundle(name) / "configs/inference.json").read_text())
        given = {key: value for key, value in given.items() if key in known}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    done = python("-m", "monai.bundle", "run", "--config_file", files, *words, cwd=bundle(name), ranks=ranks)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.parent.name + "/" + path.name)
def test_metadata_fits_the_schema(folder, tmp_path):
    """The required keys of MONAI's schema (its file is not shipped, and nothing is downloaded)."""
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
                "task", "description", "authors", "copyright", "network_data_format", "changelog", "intended_use",
                "data_source"}  # fmt: skip
    assert required <= set(metadata) and metadata["version"] in metadata["changelog"]
    assert metadata["bundle"] == folder.name
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (folder / name).is_file(), name
    assert (folder / "scripts").resolve() == ROOT / "scripts"
    commands = [line for line in (folder / "docs/README.md").read_text().splitlines() if line.startswith("    ")]
    assert not [line for line in commands if "synthaug " in line]  # which a packed bundle does not have


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", OVERLAYS)
def test_network_def_is_what_the_metadata_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle(name))
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser["bundle_root"] = str(tmp_path)
    network = parser.get_parsed_content("network_def").eval()
    formats = json.loads(Path("configs/metadata.json").read_text())["network_data_format"]
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    noise = torch.randn(2, given["num_channels"], *given["spatial_shape"])
    out = network(noise)
    assert out.shape == (2, made["num_channels"], *made["spatial_shape"])
    assert out.min() >= made["value_range"][0] and out.max() <= made["value_range"][1]
    traced = torch.jit.trace(network, noise)
    assert torch.allclose(traced(noise), out)


@pytest.mark.parametrize("name", GENERATORS)
def test_overlays_hold_only_what_differs(name):
    configs = {path.stem: json.loads(path.read_text()) for path in (bundle(name) / "configs").glob("*.json")}
    base: dict = {}
    for name in ("train_autoencoder", "train", "training", "inference"):
        for key, value in configs.get(name, {}).items():
            if not str(value).startswith("%"):
                base.setdefault(key, []).append(value)
    whole = {"common", "inference", "train", "training", "train_autoencoder", "train_diffusion", "metadata", "evaluate"}
    for overlay in set(configs) - whole - {"multi_gpu_train"}:
        for key, value in configs[overlay].items():
            assert key in base, f"{overlay}.json sets the unknown {key}"
            assert base[key].count(value) < len(base[key]), f"{overlay}.json repeats {key}"
    repeated = [k for k, v in configs["train"].items() if k in configs["inference"] and v == configs["inference"][k]]
    # where, with which seed and in which number type to run are the same words in both, and no numbers of the model
    assert set(repeated) <= {"bundle_root", "dataset_dir", "seed", "batch_size", "autocast"}


@pytest.mark.parametrize("name", GENERATORS)
def test_all_generators_have_the_same_settings_and_sample_the_same_way(name):
    ours, theirs = (json.loads((bundle(n) / "configs/inference.json").read_text()) for n in (name, "dhvae"))
    shared = {"output_dir", "num_samples", "condition", "min_foreground", "samples_per_pass", "autocast", "compile",
              "threads"}  # fmt: skip
    for key in ("bundle_root", "ckpt_dir", "output_dir", "device", "seed", "num_samples", "condition", "run"):
        assert ours[key] == theirs[key], key
    assert shared | {"batch_size", "spatial_size", "num_channels", "network_arguments", "network_def"} <= set(ours)
    arguments = {key: value for key, value in theirs["sampler"].items() if key != "_target_"}
    assert arguments.items() <= ours["sampler"].items()
    ours, theirs = (json.loads((bundle(n) / "configs/train.json").read_text()) for n in (name, "dhvae"))
    for key in ("bundle_root", "ckpt_dir", "device", "dataset_dir", "plans", "fold", "seed", "cases"):
        assert ours[key] == theirs[key], key
    assert {"configuration", "max_epochs", "batch_size", "data", "record", "train"} <= set(ours)


@pytest.mark.parametrize("name, base", [("hvae", "dhvae"), ("sbldm", "ldm")])
def test_what_two_bundles_share_stands_once(name, base):
    """Numbers of a bundle stand in training.json and inference.json; the rest is the same file."""
    ours, theirs = (bundle(n) / "configs" for n in (name, base))
    for config in ("train.json", *(path.name for path in theirs.glob("train_*.json"))):
        assert (ours / config).resolve() == (theirs / config).resolve(), config
    ours, theirs = (json.loads((folder / "training.json").read_text()) for folder in (ours, theirs))
    assert set(ours) == set(theirs) and all(ours[key] != theirs[key] for key in ours)
    shared = {path.name for path in (ROOT / "bundles/shared").iterdir()}
    for folder in (bundle(n) / "configs" for n in (name, base)):
        assert all((folder / file).resolve().parent.name == "shared" for file in shared)


@pytest.mark.parametrize("path", sorted((ROOT / "bundles").glob("*/configs/train*.json")), ids=str)
def test_train_configs_can_be_read(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 160 and max(map(len, lines)) <= 120


def test_paper_preset_has_the_size_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.chdir(bundle("dhvae"))
    parser = ConfigParser()
    parser.read_config(["configs/inference.json", "configs/paper.json"])
    parser["bundle_root"] = str(tmp_path)
    network = parser.get_parsed_content("network_def")
    assert network.latent_shape == (3, 16, 16)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(23e6, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name, overlay", [(n, o) for n in OVERLAYS for o in [None, *OVERLAYS[n]] if o != "paper"])
def test_train_then_sample(name, overlay, dataset, tmp_path):
    more = {"feature_steps": 2, "discriminator_start": 1} if name == "dhvae" else {}
    if overlay == "vae":
        more["num_leapfrog_steps"] = 0
    run(name, "train", tmp_path, overlay, dataset_dir=dataset, max_epochs=2, **more)
    models = tmp_path / "models"
    record = json.loads((models / "provenance.json").read_text())
    assert len(record["cases"]) == 4 and record["training"]["epochs"] == 2
    assert record["bundle"]["name"] == name
    if name == "dhvae" and overlay != "hvae_disc":
        assert "synthaug-segmentation-features" in record["training"]["feature_extractor"]
    rows = (models / "losses.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("epoch,iteration,seconds,loss")
    assert ("discriminator" in rows[0]) == (name == "dhvae" and overlay != "hvae_perc")
    assert ("feature" in rows[0]) == (name == "dhvae" and overlay != "hvae_disc")
    assert (models / "samples.png").is_file()
    board = EventAccumulator(str(models / "tensorboard")).Reload().Tags()
    assert {"train/loss", "train/neg_elbo", "val_neg_elbo"} <= set(board["scalars"]) and board["images"] == ["samples"]
    run(name, "inference", tmp_path, overlay, num_samples=3, min_foreground=0, **more)
    assert len(read_pool(tmp_path / "pool")["samples"]) == 3
    assert (tmp_path / "pool/samples.png").is_file()


@pytest.mark.slow
def test_two_processes_make_the_pool_of_one(dataset, tmp_path):
    untrained = run("hvae", "inference", tmp_path, num_samples=3, check=False, ranks=2)
    assert untrained.returncode != 0
    assert untrained.stderr.count("error: ") == 1 and "no trained generator" in untrained.stderr
    run("hvae", "train", tmp_path, dataset_dir=dataset, max_epochs=1)
    for ranks in (1, 2):
        run("hvae", "inference", tmp_path, ranks=ranks, num_samples=5, min_foreground=0, batch_size=ranks,
            output_dir=tmp_path / f"pool{ranks}")  # fmt: skip
    assert contents(tmp_path / "pool1") == contents(tmp_path / "pool2")
    assert (tmp_path / "pool2/samples.png").is_file()


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(dataset, tmp_path):
    more = {"dataset_dir": dataset, "feature_steps": 2, "discriminator_start": 3}
    run("dhvae", "train", tmp_path / "straight", max_epochs=4, **more)
    run("dhvae", "train", tmp_path / "resumed", max_epochs=2, **more)
    run("dhvae", "train", tmp_path / "resumed", max_epochs=4, **more)
    a, b = (torch.load(tmp_path / n / "models/model.pt", weights_only=True) for n in ("straight", "resumed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = (torch.load(tmp_path / n / "models/checkpoint.pt", weights_only=True) for n in ("straight", "resumed"))
    assert all(torch.equal(a["discriminator"][key], b["discriminator"][key]) for key in a["discriminator"])

    def losses(name):  # all but the seconds
        rows = (tmp_path / name / "models/losses.csv").read_text().splitlines()
        return [[value for i, value in enumerate(row.split(",")) if i != 2] for row in rows]

    assert losses("straight") == losses("resumed") and len(losses("straight")) == 5
    other = run("dhvae", "train", tmp_path / "resumed", max_epochs=4, check=False, **{**more, "learning_rate": 0.5})
    assert other.returncode != 0 and "other settings" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_killed_training_goes_on(dataset, tmp_path):
    """SIGKILL in an epoch leaves a whole checkpoint; the command goes on, and ends where an uninterrupted one ends."""
    files = "['configs/train.json']"
    settings = {"bundle_root": tmp_path, "dataset_dir": dataset, "max_epochs": 10_000, **TINY}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    process = start("-m", "monai.bundle", "run", "--config_file", files, *words, cwd=bundle("hvae"))
    checkpoint = tmp_path / "models/checkpoint.pt"
    wait_until(checkpoint.is_file, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trainer = torch.load(checkpoint, weights_only=True)["trainer"]
    assert trainer["iteration"] > 0
    epochs = trainer["iteration"] // trainer["epoch_length"] + 2
    assert not (tmp_path / "models/model.pt").exists()
    inference = run("hvae", "inference", tmp_path, check=False)
    assert inference.returncode != 0 and "no trained generator" in inference.stderr
    assert not (tmp_path / "pool").exists() and not (tmp_path / "pool.partial").exists()
    run("hvae", "train", tmp_path, dataset_dir=dataset, max_epochs=epochs)
    run("hvae", "train", tmp_path / "straight", dataset_dir=dataset, max_epochs=epochs)
    a, b = (torch.load(folder / "models/model.pt", weights_only=True) for folder in (tmp_path, tmp_path / "straight"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    before = (tmp_path / "models/provenance.json").read_bytes()
    run("hvae", "train", tmp_path, dataset_dir=dataset, max_epochs=epochs)  # finished: nothing is done
    assert (tmp_path / "models/provenance.json").read_bytes() == before
    fewer = run("hvae", "train", tmp_path, dataset_dir=dataset, max_epochs=epochs - 1, check=False)
    assert fewer.returncode != 0 and f"at least {epochs}" in fewer.stderr
    other = run("hvae", "inference", tmp_path, check=False, channels=[8, 8])
    assert other.returncode != 0 and "another architecture" in other.stderr and "Traceback" not in other.stderr
    assert not (tmp_path / "pool").exists() and not (tmp_path / "pool.partial").exists()


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"fold": 9}, "fold"),
        ({"dataset_dir": "/nowhere"}, "no folder"),
        ({"max_epoch": 3}, "--max_epochs"),
        ({"first_order": "false"}, "first_order"),
    ],
)
@pytest.mark.slow
def test_bad_settings_end_in_one_clear_error(wrong, words, dataset, tmp_path):
    done = run("hvae", "train", tmp_path, check=False, **{"dataset_dir": dataset, "max_epochs": 1, **wrong})
    assert done.returncode != 0
    assert words in done.stderr and "remedy" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


def test_unknown_overrides_name_the_nearest(monkeypatch, tmp_path):
    monkeypatch.chdir(bundle("hvae"))
    start = ["run", "--config_file", "['configs/inference.json','configs/vae.json']"]
    refuse_unknown_overrides([*start, "--num_samples", "3", "--sampler#device", "cpu"])
    refuse_unknown_overrides(["unrelated", "--thing", "1"])
    with pytest.raises(InputError, match="did you mean --num_samples"):
        refuse_unknown_overrides([*start, "--num_sample", "3"])
    with pytest.raises(InputError, match="did you mean --sampler#device"):
        refuse_unknown_overrides([*start, "--sampler#devise", "cpu"])
    with pytest.raises(InputError, match="drops without a word"):
        refuse_unknown_overrides([*start, "--condition", "None"])
    with pytest.raises(InputError, match="did you mean --seed"):
        refuse_unknown_overrides(["run", "--config_file=configs/inference.json", "--sed=3"])
    (tmp_path / "args.json").write_text(json.dumps({"config_file": "configs/inference.json", "sed": 3}))
    with pytest.raises(InputError, match="did you mean --seed"):
        refuse_unknown_overrides(["run", "--args_file", str(tmp_path / "args.json")])


def test_settings_of_tracking_are_known_where_there_is_tracking(monkeypatch, tmp_path):
    monkeypatch.chdir(bundle("hvae"))
    start = ["run", "--config_file", "configs/train.json", "--workflow_type", "train"]
    given = ["--experiment_name", "e", "--run-name=r", "--tracking_uri", "http://host:5000", "--output_dir", "o",
             "--save_execute_config", "False"]  # fmt: skip
    refuse_unknown_overrides([*start, *given, "--tracking", "mlflow"])
    with pytest.raises(InputError, match="unknown setting --experiment_name"):
        refuse_unknown_overrides([*start, *given])
    with pytest.raises(InputError, match="did you mean --run_name"):
        refuse_unknown_overrides([*start, "--tracking=mlflow", "--run_nam", "r"])
    with pytest.raises(InputError, match="unknown setting --trainer"):  # which MONAI would not read
        refuse_unknown_overrides([*start, "--tracking=mlflow", "--trainer", "r"])
    own = {"handlers_id": {"trainer": {"id": "train#trainer", "handlers": "train#handlers"}},
           "configs": {"server": "http://host:5000", "trainer": {}}}  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(own))
    refuse_unknown_overrides([*start, "--tracking", str(tmp_path / "own.json"), "--server", "other"])
