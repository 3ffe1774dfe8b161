"""Every generator passes every check of `synthaug verify`, and the checks fail where a bundle is broken."""

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts.packaging.verify import CHECKS, verify_bundles

ROOT = Path(__file__).resolve().parents[2]
GENERATORS = ("dhvae", "hvae", "lsgan", "ldm", "sbldm", "lesion_flow")
# Which versions are installed is the registry's choice; `synthaug verify` compares them where a release is made.
HERE = tuple(check for check in CHECKS if check != "versions")
CHEAP = ("files", "schema", "names", "versions")


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_every_check_passes(name):
    lines: list[str] = []
    assert verify_bundles([ROOT / "bundles" / name], lines.append, HERE) == 0, "\n".join(lines)
    assert len(lines) == len(HERE)


@pytest.fixture
def copy(tmp_path):
    """A copy of a bundle that may be broken; its code stays where it is."""
    return Path(shutil.copytree(ROOT / "bundles/dhvae", tmp_path / "dhvae", ignore=lambda *_: ["scripts"]))


def findings(folder: Path) -> str:
    lines: list[str] = []
    verify_bundles([folder], lines.append, CHEAP)
    return "\n".join(line for line in lines if "FAILED" in line and "other versions" not in line)


@pytest.mark.slow
def test_what_is_broken_is_found(copy):
    assert findings(copy) == ""
    path = copy / "configs/metadata.json"
    metadata = json.loads(path.read_text())

    def broken(**changes) -> str:
        path.write_text(json.dumps({**metadata, **changes}))
        return findings(copy)

    assert "changelog does not say" in broken(version="9.0.0")
    assert "is a required property" in broken(network_data_format={"inputs": metadata["network_data_format"]["inputs"]})
    assert "filelock" in broken(required_packages_version={})
    assert "bundle other" in broken(bundle="other", zoo_name="another")
    assert "slice_hvae_image_mask_generation of hvae" in broken(zoo_name="slice_hvae_image")
    assert "lower case" in broken(zoo_name="dHVAE")
    path.write_text(json.dumps(metadata))
    (copy / "docs/data_license.txt").unlink()
    (copy / "models").mkdir(exist_ok=True)
    assert "missing: docs/data_license.txt" in findings(copy)
    shutil.copy(ROOT / "LICENSE", copy / "docs/data_license.txt")
    with open(copy / "models/model.pt", "wb") as file:
        file.truncate(26 << 20)
    assert "larger than 25 MB" in findings(copy)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("overlay", ["evaluate", "multi_gpu_train"])
def test_overlays_change_what_is_there(name, overlay):
    configs = ROOT / "bundles" / name / "configs"
    train = ConfigParser(ConfigParser.load_config_file(configs / "train.json"))
    for key in ConfigParser.load_config_file(configs / f"{overlay}.json"):
        parent = key.lstrip("+").rpartition("#")[0]
        assert not parent or parent in train, key


def test_the_phantom_of_two_processes_is_written_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from scripts.data import cases
    from scripts.phantom import dataset as phantom

    written = []

    def slow(folder):
        written.append(folder)
        return original(folder, cases=5, test_cases=1, shape=(32, 32, 8))

    original, phantom.write_phantom = phantom.write_phantom, slow
    try:
        with ThreadPoolExecutor(2) as pool:
            opened = list(pool.map(lambda _: cases.open_cases(None, phantom_dir=tmp_path), range(2)))
    finally:
        phantom.write_phantom = original
    assert len(written) == 1 and len(opened) == 2
