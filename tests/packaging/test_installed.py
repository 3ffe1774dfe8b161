"""What a wheel installs: `synthaug` and no `scripts`; its bundles run, and are packed as those of a clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.packaging import pack

from ..processes import ROOT, python

PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "scripts", "nnunet_plugin", "bundles")


def _code_of_bundles(folder: str, names: list[str]) -> list[str]:
    """Compiled files, and the folders of code that bundles link; their linked configs are copied."""
    linked = [name for name in names if Path(folder, name).is_symlink() and Path(folder, name).is_dir()]
    return [*linked, "__pycache__"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The packages of a wheel."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in PARTS:
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, source / name)
        else:
            shutil.copytree(ROOT / name, source / name, ignore=_code_of_bundles)
    build = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_py", "--build-lib", str(site)]
    subprocess.run(build, cwd=source, check=True)
    return site


def installed(site: Path, *words: object, cwd: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = python(*words, cwd=cwd, env={**clean, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_wheel_holds_synthaug_and_no_scripts(site):
    assert sorted(path.name for path in site.iterdir()) == ["nnunet_plugin", "synthaug"]
    for name, package in (("scripts", "synthaug"), ("nnunet_plugin", "nnunet_plugin"), ("bundles", "synthaug/bundles")):
        wanted = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*")
                  if path.is_file() and path.suffix in (".py", ".json", ".yaml", ".pt", ".conf")
                  and not set(path.relative_to(ROOT / name).parts[1:2]) & {"scripts", "nnunet_plugin"}
                  and path.parent.name != "shared"}  # fmt: skip
        assert len(wanted) > 10 and not [path for path in wanted if not (site / package / path).is_file()]
    configs = list((site / "synthaug/bundles").glob("*/configs/*.json"))
    assert len(configs) > 20 and not [path for path in configs if "scripts." in path.read_text()]
    assert "$from synthaug." in (site / "synthaug/bundles/dhvae/configs/train.json").read_text()
    assert "from synthaug." in (site / "synthaug/bundles/lesion_flow/docs/label_app/paint.py").read_text()


@pytest.mark.slow
def test_an_installed_bundle_runs_and_is_packed_as_that_of_a_clone(site, tmp_path, capsys, monkeypatch):
    bundle = Path(installed(site, "-m", "synthaug", "bundle-path", "dhvae", cwd=tmp_path).strip())
    assert bundle == site / "synthaug/bundles/dhvae"
    program = (
        "import sys; from monai.bundle import run; run(config_file='configs/inference.json', "
        f"num_samples=2, output_dir={str(tmp_path / 'pool')!r}); print('scripts' in sys.modules)"
    )
    assert installed(site, "-c", program, cwd=bundle).splitlines()[-1] == "False"
    assert len(json.loads((tmp_path / "pool/pool.json").read_text())["samples"]) == 2
    installed(site, "-m", "synthaug", "pack", "dhvae", tmp_path / "installed", cwd=tmp_path)
    monkeypatch.setattr(pack, "check_loads", lambda *_: None)  # has been done, and these are the same bytes
    ours = pack.pack_bundle(ROOT / "bundles/dhvae", tmp_path / "clone")
    assert (tmp_path / "installed" / ours.name).read_bytes() == ours.read_bytes()
    capsys.readouterr()
