"""MONAI Label: its inference task and its training task, on a packed bundle and a datastore of images and labels."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from scipy import ndimage

from scripts.data.cases import open_cases
from scripts.sampling.insertion import insert_lesion

from ..data.toy import body_case
from ..sampling.test_insertion import SPACING, oblique, one_label
from ..sampling.toy_painter import make_painter
from .conftest import BUNDLE, run, write_site

pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install monailabel")
from monailabel.datastore.local import LocalDatastore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
    pytest.mark.filterwarnings("ignore:.*NvImgCodecPydicomReader:UserWarning"),  # where pydicom is installed
]


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_training_and_inference_tasks(packed, tmp_path):
    """It learns from the labels of the datastore, starting from the weights at hand, and its record says all of that.

    The label map that a reader gets is, to the voxel, the bundle's own prediction with the weights of that moment.
    """
    bundle = shutil.copytree(packed, tmp_path / "model/segmentation")
    site, studies = write_site(tmp_path / "second", seed=2), tmp_path / "studies"
    (studies / "labels/final").mkdir(parents=True)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (site / "labelsTr").iterdir())
    for name in names:
        shutil.copy(site / f"imagesTr/{name}_0000.nii.gz", studies / f"{name}_own.nii.gz")
    for name in names[:4]:
        shutil.copy(site / f"labelsTr/{name}.nii.gz", studies / f"labels/final/{name}_own.nii.gz")
    shipped = json.loads((bundle / "models/provenance.json").read_text())
    image = tmp_path / "images/new_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(site / "imagesTs/flair_test_000_0000.nii.gz", image)

    said = run(Path(__file__).with_name("label_session.py"), bundle, studies, image, tmp_path, cwd=tmp_path)
    assert "labels {'tumor': 0}" in said and "val_mean_dice" in said
    first, second = (json.loads((tmp_path / f"provenance{turn}.json").read_text()) for turn in (1, 2))
    cases = open_cases(site, "all")
    labelled = [{"id": f"{name}_own", **cases.load(name).identity._asdict()} for name in names[:4]]
    read = [case for case in labelled if case in first["cases"]]  # MONAI Label validates on one of its choice
    assert first["cases"] == second["cases"] == read and len(read) == 3 and first["training"]["epochs"] == 2
    assert first["training"]["started_from"]["weights_sha256"] == shipped["weights_sha256"]
    assert first["training"]["started_from"]["cases"] == shipped["cases"] and len(shipped["cases"]) == 4
    assert second["training"]["started_from"]["weights_sha256"] == first["weights_sha256"]
    assert second["training"]["started_from"]["cases"] == shipped["cases"] + read
    assert len({record["weights_sha256"] for record in (shipped, first, second)}) == 3

    where = (
        f"--config_file={bundle}/configs/inference.json",
        f"--bundle_root={bundle}",
        f"--dataset_dir={image.parent}",
    )
    run("-m", "monai.bundle", "run", *where, cwd=tmp_path)
    labels = [voxels(tmp_path / f"label{turn}.nii.gz") for turn in range(3)]
    assert np.array_equal(labels[2], voxels(bundle / "predictions/new.nii.gz")) and labels[2].any()
    assert np.allclose(nib.load(tmp_path / "label2.nii.gz").affine, nib.load(image).affine)
    assert not np.array_equal(labels[0], labels[1])


SERVER = ("fastapi", "uvicorn", "pydicom_seg", "dicomweb_client", "retrying", "psutil")
LESIONS = BUNDLE.parent / "lesion_flow/docs/label_app"
APP = Path(sys.prefix, "monailabel/sample-apps/monaibundle")  # what `monailabel apps --download` copies


@pytest.fixture
def server(packed, tmp_path):
    """Address of the server that the documented command starts, the packed bundle in its app, and what it says."""
    for name in SERVER:
        pytest.importorskip(name, reason="MONAI Label is installed without what its server needs")
    bundle = shutil.copytree(packed, shutil.copytree(APP, tmp_path / "apps/monaibundle") / "model" / packed.name)
    (tmp_path / "studies").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "start_server", "--app", tmp_path / "apps/monaibundle", "--studies", tmp_path / "studies",
        "--conf", "models", packed.name, "--conf", "zoo_source", "local", "--host", "127.0.0.1", "--port", port,
    ]  # fmt: skip
    with open(tmp_path / "said", "w") as said:
        command = [sys.executable, "-W", "ignore", "-m", "monailabel.main", *map(str, words)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, (tmp_path / "said").read_text()[-4000:]
            try:
                requests.get(f"{url}/info/")
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url, bundle
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(not APP.is_dir(), reason="the sample apps of MONAI Label are not installed")
def test_server_segments_an_image_of_another_spacing_and_orientation(server, tmp_path):
    """What a viewer gets is, to the voxel, the bundle's own prediction of the file, on the file's own grid."""
    url, bundle = server
    info = requests.get(f"{url}/info/").json()
    assert list(info["models"]) == [bundle.name] and list(info["models"][bundle.name]["labels"]) == ["tumor"]

    site = nib.load(write_site(tmp_path / "second", seed=2) / "imagesTs/flair_test_000_0000.nii.gz")
    finer = ndimage.zoom(np.asarray(site.dataobj, dtype=np.float32), (1.5, 1.25, 1), order=1)
    scale = np.diag([*(before / after for before, after in zip(site.shape, finer.shape, strict=True)), 1])
    turned = nib.Nifti1Image(finer, site.affine @ scale).as_reoriented([[1, -1], [0, 1], [2, -1]])
    image = tmp_path / "images/new_0000.nii.gz"
    image.parent.mkdir()
    nib.save(turned, image)

    with open(image, "rb") as file:
        sent = requests.put(f"{url}/datastore/", params={"image": "new"}, files={"file": (image.name, file)})
    assert sent.status_code == 200, sent.text
    answer = requests.post(
        f"{url}/infer/{bundle.name}", params={"image": "new", "output": "image"}, data={"params": '{"device": "cpu"}'}
    )
    assert answer.status_code == 200, answer.text + (tmp_path / "said").read_text()[-4000:]
    (tmp_path / "label.nii.gz").write_bytes(answer.content)
    where = (f"--config_file={bundle}/configs/inference.json", f"--bundle_root={bundle}")
    run("-m", "monai.bundle", "run", *where, f"--dataset_dir={image.parent}", cwd=tmp_path)
    label = nib.load(tmp_path / "label.nii.gz")
    assert label.shape == turned.shape and np.allclose(label.affine, turned.affine, atol=1e-4)
    assert voxels(tmp_path / "label.nii.gz").any()
    assert np.array_equal(voxels(tmp_path / "label.nii.gz"), voxels(bundle / "predictions/new.nii.gz"))


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Folder of a painter's `models`, and one with an oblique volume of a finer spacing than the painter's."""
    make_painter(tmp_path / "flow", case=one_label, labels={"background": 0, "lesion": 1})
    values = np.repeat(np.repeat(body_case(21)[0][0].T, 2, axis=0), 2, axis=1)
    (tmp_path / "studies").mkdir()
    nib.save(nib.Nifti1Image(values, oblique(SPACING / [2, 2, 1])), tmp_path / "studies/anna.nii.gz")
    monkeypatch.syspath_prepend(LESIONS)  # as MONAI Label does
    return tmp_path / "flow", tmp_path / "studies"


def click(mode: str, **more) -> dict:
    return {"model": f"{mode}_lesion", "foreground": [[34, 40, 6]], "volume": 900, "seed": 3, **more}


def label_app(file: str):
    """A module of the app of lesion_flow."""
    spec = importlib.util.spec_from_file_location(file, LESIONS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mode", ["insert", "remove"])
def test_a_click_paints_a_lesion_or_takes_one_away(mode, studies):
    """A label map on the grid of the file, and a new study that differs from it in the hole alone."""
    flow, folder = studies
    image, datastore = folder / "anna.nii.gz", LocalDatastore(str(folder), extensions=["*.nii.gz"], auto_reload=False)
    given = voxels(image).copy()
    task = label_app("paint").Paint(mode, flow / "models", lambda: datastore)
    path, about = task(click(mode, image=str(image)))
    label, painted = nib.load(path), nib.load(folder / f"{about['image']}.nii.gz")
    region = np.asarray(label.dataobj) > 0
    expected = insert_lesion([image], flow / "models", None, 900.0, [34, 40, 6], mode == "remove", seed=3)
    assert np.array_equal(region, expected.hole if mode == "remove" else expected.label > 0) and region[34, 40, 6]
    assert np.array_equal(np.asarray(painted.dataobj), expected.painted[0])
    assert np.array_equal(label.affine, painted.affine) and np.allclose(label.affine, nib.load(image).affine)
    assert np.array_equal(voxels(image), given)
    assert sorted(datastore.list_images()) == ["anna", about["image"]] and "_synthetic_" in about["image"]
    assert datastore.datalist() == []  # no training learns from it unasked
    Path(path).unlink()


def test_the_app_offers_both(studies):
    """As the server makes it and asks it."""
    for name in SERVER:
        pytest.importorskip(name, reason="MONAI Label is installed without what its app needs")
    flow, folder = studies
    app = label_app("main").LesionApp(str(LESIONS), str(folder), {"bundle_root": str(flow)})
    assert set(app.info()["models"]) == {"insert_lesion", "remove_lesion"}
    for mode in ("insert", "remove"):
        answer = app.infer(click(mode, image="anna"))
        assert voxels(answer["file"]).any() and answer["params"]["image"] in app.datastore().list_images()
        Path(answer["file"]).unlink()
