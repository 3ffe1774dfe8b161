"""The reader's test: blinded, the same for the same seed, and filled in by a real browser."""

import base64
import json
import re

import nibabel as nib
import numpy as np
import pytest

from scripts.audit.thresholds import wilson_interval
from scripts.data.cases import open_cases
from scripts.pool.writing import read_pool
from scripts.report.reader import hidden, write_reader
from scripts.runtime.errors import InputError
from scripts.sampling.copy_paste import write_copy_paste

from ..data.toy import write_raw
from .browser import AVAILABLE, Browser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set, a pool of slices and one of volumes."""
    folder = tmp_path_factory.mktemp("reader")
    data = write_raw(folder / "Dataset901_Toy", cases=20, channels=2)
    slices = write_copy_paste(data, folder / "slices", 12)
    volumes = write_copy_paste(data, folder / "volumes", 6, spatial_size=[20, 18, 6])
    return {"data": data, "slices": slices, "volumes": volumes}


def read(page):
    content = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', page.read_text())[1])
    key = json.loads(hidden(base64.b64decode(content["key"]), content["study"]).tobytes())
    return content, key


def test_files_of_others_stay(made, tmp_path):
    (tmp_path / "notes.html").write_text("mine")
    for path in (tmp_path / "notes.html", tmp_path):
        with pytest.raises(InputError, match="did not write"):
            write_reader(made["slices"], made["data"], path, count=4)
    assert (tmp_path / "notes.html").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "depth"), [("slices", 1), ("volumes", 3)])
def test_nothing_but_the_picture_tells_real_from_synthetic(kind, depth, made, tmp_path):
    page = write_reader(made[kind], made["data"], tmp_path / "page.html", count=8, slices=depth)
    again = write_reader(made[kind], made["data"], tmp_path / "again.html", count=8, slices=depth)
    assert page.read_bytes() == again.read_bytes()
    assert write_reader(made[kind], made["data"], page, count=8, slices=depth).read_bytes() == again.read_bytes()
    content, key = read(page)
    assert sorted(key["truth"]) == ["real"] * 4 + ["synthetic"] * 4
    sizes = {len(image) for image in content["images"]}, {len(mask) for mask in content["masks"]}
    pixels = int(np.prod(content["shape"]))
    assert content["shape"][0] == depth and sizes == ({4 * -(-pixels * 2 * 2 // 3)}, {4 * -(-pixels // 3)})
    other = read(write_reader(made[kind], made["data"], tmp_path / "other.html", count=8, slices=depth, seed=1))[1]
    assert other["truth"] != key["truth"]  # the seed shuffles

    fold = open_cases(made["data"]).fold
    kept = {sample["id"] for sample in read_pool(made[kind])["samples"]}
    for truth, source in zip(key["truth"], key["sources"], strict=True):
        name = source.split(",")[0]
        assert name in (fold.val if truth == "real" else kept)
        assert source not in page.read_text() and name not in page.read_text()
    assert "syn_" not in page.read_text()
    assert all(any(base64.b64decode(mask)) for mask in content["masks"])


@pytest.mark.slow
def test_a_picture_is_the_slice_that_its_source_names(made, tmp_path):
    content, key = read(write_reader(made["slices"], made["data"], tmp_path / "page.html", count=8))
    index = key["truth"].index("real")
    case, number = key["sources"][index].split(", slice ")
    shown = np.frombuffer(base64.b64decode(content["masks"][index]), np.uint8).reshape(content["shape"])
    label = np.asarray(nib.load(made["data"] / f"labelsTr/{case}.nii.gz").dataobj).T[int(number)]
    assert np.array_equal(shown[0], label)  # every toy case has the same size: nothing is cut
    image = np.frombuffer(base64.b64decode(content["images"][index]), "<u2").reshape(1, 2, *content["shape"][1:])
    real = np.asarray(nib.load(made["data"] / f"imagesTr/{case}_0001.nii.gz").dataobj).T[int(number)]
    assert np.corrcoef(image[0, 1].ravel(), real.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_what_cannot_be_shown_is_refused(made, tmp_path):
    for settings, message in (
        ({"count": 1}, "count"), ({"slices": 2}, "slices"), ({"count": 80}, "synthetic images"), ({"seed": -1}, "seed"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            write_reader(made["slices"], made["data"], tmp_path / "page.html", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason="needs chromium and chromedriver: apt-get install chromium chromium-driver")
def test_a_reader_fills_it_in(made, tmp_path):
    page = write_reader(made["volumes"], made["data"], tmp_path / "page.html", count=6, slices=3)
    _, key = read(page)
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.click("#reader")
        browser.keys("A. B.", "Enter")
        assert browser.script("return document.getElementById('progress').textContent") == "1 of 6"
        browser.keys("Enter")  # nothing without a verdict
        assert browser.script("return state.position") == 0

        grey = "return [...document.getElementById('image').getContext('2d').getImageData(0, 0, 9e2, 9e2).data]"
        mean = f"{grey}.reduce((sum, value) => sum + value)"
        plain = browser.script(mean)
        browser.keys("m")
        assert browser.script(mean) != plain
        browser.keys("m")
        assert browser.script(mean) == plain
        for change in (lambda: browser.drag((400, 300), (80, 60)), lambda: browser.keys("ArrowUp"),
                       lambda: browser.keys("c")):  # fmt: skip
            before = browser.script(mean)
            change()
            assert browser.script(mean) != before
        browser.keys("w", "c", "t", "r2d2, odd", "Escape")  # typed, and no verdict

        for index, truth in enumerate(key["truth"]):
            wrong = {"real": "s", "synthetic": "r"}
            browser.keys(truth[0] if index else wrong[truth], str(1 + index % 5))
            if index == 2:
                browser.keys("Enter", "ArrowLeft")  # there and back
                browser.wait_until_kept('"position":2')
                browser.open(page)  # closed and opened again
                browser.click("#begin")
                assert browser.script("return state.position") == 2
            browser.keys("Enter")
        assert "83 % right (5 of 6)" in browser.script("return document.body.innerText")
        browser.click("#save")
        saved = json.loads(browser.downloaded("reader_A_B_.json").read_text())
    assert saved["reader"] == "A. B." and saved["about"]["pool"] == "volumes"
    assert [item["truth"] for item in saved["items"]] == key["truth"]
    assert [item["source"] for item in saved["items"]] == key["sources"]
    assert [item["verdict"] == item["truth"] for item in saved["items"]] == [False] + [True] * 5
    assert [item["realism"] for item in saved["items"]] == [1, 2, 3, 4, 5, 1]
    assert saved["items"][0]["remark"] == "r2d2, odd" and all(item["seconds"] >= 0 for item in saved["items"])
    assert saved["all"]["interval"] == pytest.approx(wilson_interval(5, 6), abs=1e-6)
    assert saved["real"]["n"] == saved["synthetic"]["n"] == 3
