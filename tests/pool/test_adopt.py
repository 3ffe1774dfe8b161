"""Images of other programs become a pool like any other, or are refused before anything is written."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.arrayproxy import ArrayProxy
from nnunet_plugin.leakage import check_split
from nnunet_plugin.pool_format import read_pool as plugin_pool
from nnunet_plugin.pool_format import read_sample

from scripts.audit.items import load_audit_data
from scripts.data.cases import open_cases
from scripts.data.folds import crossval_folds
from scripts.metrics.item_sets import open_pool, read_cases, read_samples
from scripts.pool.adopt import adopt_pool, user_word
from scripts.pool.writing import load_sample, read_pool
from scripts.runtime.errors import InputError
from scripts.segmentation.mixing import load_pool

from ..data.toy import toy_case, write_preprocessed, write_raw

AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0])


def write_files(folder, count=3, names=("images", "labels"), channels=1, affine=AFFINE, slices=False, change=None):
    """Toy cases of patients that no data set holds, as another program would leave them."""
    for name in names:
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image, label = toy_case(100 + index, channels)
        if slices:
            image, label = image[:, 3:4], label[3:4]
        if change and index == count - 1:
            image, label = change(image, label)
        for channel, values in enumerate(image):
            ending = f"_{channel:04d}" if names[0] == "imagesTr" or channels > 1 else ""
            nib.save(nib.Nifti1Image(values.T, affine), folder / names[0] / f"gan_{index}{ending}.nii.gz")
        nib.save(nib.Nifti1Image(label.T.astype(np.uint8), affine), folder / names[1] / f"gan_{index}.nii.gz")
    return folder


@pytest.fixture
def raw(tmp_path):
    """A data set whose files are stored as LPS, as most are."""
    folder = write_raw(tmp_path / "Dataset901_Toy")
    for path in folder.rglob("*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), AFFINE), path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("names", [("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks")])
def test_a_pool_holds_what_the_files_hold(names, raw, tmp_path):
    source = write_files(tmp_path / "gan", names=names)
    pool = adopt_pool(source, tmp_path / "pool", raw, "MyGAN", "none")
    before = (pool / "pool.json").read_bytes()
    assert adopt_pool(source, tmp_path / "pool", raw, "MyGAN", "none") == pool
    assert (pool / "pool.json").read_bytes() == before  # the same command changes nothing
    record = read_pool(pool)
    assert [sample["file"] for sample in record["samples"]] == ["gan_0", "gan_1", "gan_2"]
    for index, sample in enumerate(record["samples"]):
        image, label = toy_case(100 + index)
        loaded = load_sample(pool, sample["id"], 1)
        assert np.array_equal(loaded[0], image) and np.array_equal(loaded[1], label)
        file = nib.load(pool / f"labels/{sample['id']}.nii.gz")
        assert np.allclose(file.affine, AFFINE)  # programs that turn real cases turn samples the same way
        read_sample(plugin_pool(pool), sample["id"], {0, 1, 2})
    assert "MyGAN" in user_word(record) and "none" in user_word(record)


def test_a_file_is_unpacked_once_to_check_it_and_once_to_write_it(tmp_path, raw, monkeypatch):
    source, unpacked, scaled = write_files(tmp_path / "gan"), [], ArrayProxy._get_scaled

    def count(self, *arguments, **more):
        unpacked.append(self.file_like)
        return scaled(self, *arguments, **more)

    monkeypatch.setattr(ArrayProxy, "_get_scaled", count)
    adopt_pool(source, tmp_path / "pool", raw, "MyGAN", saw="none")
    times = sorted(unpacked.count(str(path)) for path in source.rglob("*.nii.gz"))
    assert times == [2, 2, 2, 2, 2, 3]  # the first label also says whether they are slices


def test_slices_and_channels(tmp_path):
    raw = write_raw(tmp_path / "Dataset901_Toy", channels=2)
    source = write_files(tmp_path / "gan", channels=2, slices=True, affine=np.diag([1.0, 1.5, 4.0, 1.0]))
    pool = adopt_pool(source, tmp_path / "pool", raw, "MyGAN")
    assert read_pool(pool)["dimension"] == 2
    image, label = load_sample(pool, "syn_000001", 2)
    assert np.array_equal(image, toy_case(101, 2)[0][:, 3:4]) and np.array_equal(label, toy_case(101)[1][3:4])


def test_preprocessed_slices_enter_their_space(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")

    def write(name, scale):
        source = tmp_path / name
        for part in ("images", "labels"):
            (source / part).mkdir(parents=True)
        image, label = toy_case(100)
        image = scale * (image - image.mean()) / image.std()
        affine = np.diag([1.0, 1.5, 4.0, 1.0])
        nib.save(nib.Nifti1Image(image[0, 3].T[..., None], affine), source / "images/a.nii.gz")
        nib.save(nib.Nifti1Image(label[3].T[..., None].astype(np.uint8), affine), source / "labels/a.nii.gz")
        return source

    pool = adopt_pool(write("gan", 1), tmp_path / "pool", folder, "MyGAN", preprocessed=True)
    assert read_pool(pool)["space"] == open_cases(folder).space
    with pytest.raises(InputError, match="units"):
        adopt_pool(write("other", 1000), tmp_path / "pool2", folder, "MyGAN", preprocessed=True)
    with pytest.raises(InputError, match="nnU-Net normalises whole volumes"):
        adopt_pool(tmp_path / "gan", tmp_path / "pool2", folder, "MyGAN")
    assert not (tmp_path / "pool2").exists()


@pytest.mark.parametrize("saw", ["none", "all", "unknown", "list"])
def test_the_leak_rule_takes_the_user_by_his_word(saw, raw, tmp_path):
    fold = open_cases(raw, 0).fold
    if saw == "list":
        (tmp_path / "cases.txt").write_bytes("\ufeff".encode() + "\r\n".join(fold.train).encode())  # as on Windows
    word = tmp_path / "cases.txt" if saw == "list" else saw
    pool = adopt_pool(write_files(tmp_path / "gan"), tmp_path / "pool", raw, "MyGAN", word)
    seen = {"none": [], "list": fold.train}.get(saw, sorted([*fold.train, *fold.val]))
    assert sorted(plugin_pool(pool).generator_cases) == sorted(seen)
    provenance, splits = read_pool(pool)["provenance"], crossval_folds([*fold.train, *fold.val])
    check_split(provenance, splits, [*fold.train, *fold.val])
    assert provenance["fold"] == (0 if saw in ("none", "list") else "all")

    opened = open_pool(pool, raw)
    assert opened.held_out == ([] if saw in ("all", "unknown") else fold.val)
    sets = [read_samples(opened, lambda items, _: items), read_cases(opened, "training", opened.training, iter_of)]
    # In the scanner's units or not, a volume of another program is scaled as a real one is.
    assert abs(float(sets[0].images[:].mean() - sets[1].images[:].mean())) < 0.05

    from scripts.data.training_set import load_training_set

    cases = open_cases(raw, 0)
    data = load_training_set(cases, (20, 18, 6))
    if saw in ("all", "unknown"):
        with pytest.raises(InputError, match="leak"):
            load_pool(pool, cases, data)
    else:
        assert len(load_pool(pool, cases, data).items) == 3


def test_a_data_set_that_lists_its_files_takes_pools_and_refuses_turned_ones(raw, tmp_path):
    names = [path.name[: -len(".nii.gz")] for path in sorted((raw / "labelsTr").iterdir())]
    for name in ("imagesTr", "labelsTr"):
        (raw / name).rename(tmp_path / f"{name}_aside")
    listed = {
        name: {"images": [f"../imagesTr_aside/{name}_0000.nii.gz"], "label": f"../labelsTr_aside/{name}.nii.gz"}
        for name in names
    }
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))
    pool = adopt_pool(write_files(tmp_path / "gan"), tmp_path / "pool", raw, "MyGAN", "none")
    assert len(read_pool(pool)["samples"]) == 3
    with pytest.raises(InputError, match="orientation RAS"):
        adopt_pool(
            write_files(tmp_path / "turned", affine=np.abs(AFFINE)), tmp_path / "other", raw, "MyGAN", "none"
        )  # fmt: skip


def test_copies_of_any_case_are_looked_for_where_the_generator_saw_none(raw, tmp_path):
    pool = adopt_pool(write_files(tmp_path / "gan"), tmp_path / "pool", raw, "MyGAN", "none")
    audit = load_audit_data(pool, raw, iter_of)
    fold = open_cases(raw, 0).fold
    assert {*audit.real.groups} == {*fold.train, *fold.val} and not audit.held_out.any()


def iter_of(items, _):
    return items


def test_a_pool_without_cases_is_refused_where_nobody_said_so(raw, tmp_path):
    pool = adopt_pool(write_files(tmp_path / "gan"), tmp_path / "pool", raw, "MyGAN", "none")
    content = json.loads((pool / "pool.json").read_text())
    content["provenance"]["adopted"]["saw"] = "unknown"
    (pool / "pool.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no leak can be excluded"):
        plugin_pool(pool)


def larger(image, label):
    return image[:, :, :-1], label[:, :-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"affine": np.diag([-1.0, -2.0, 4.0, 1.0])}, "spacing"),
        ({"affine": np.diag([1.0, 1.5, 4.0, 1.0])}, "orientation RAS"),
        ({"channels": 2}, "_0001"),
        ({"change": lambda image, label: (image, label + 2)}, "labels"),
        ({"change": lambda image, label: (np.nan * image, label)}, "NaN"),
        ({"change": lambda image, label: (image[:, 1:], label)}, "same grid"),
        ({"change": lambda image, label: (image[:, :1], label[:1])}, "alone"),
        ({"names": ("pictures", "labels")}, "without images and labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(more, message, raw, tmp_path):
    source = write_files(tmp_path / "gan", **more)
    with pytest.raises(InputError, match=message):
        adopt_pool(source, tmp_path / "pool", raw, "MyGAN")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("pool")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"saw": "some"}, "saw"), ({"made_by": " "}, "made_by"), ({"preprocessed": True}, "preprocessed")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_words(settings, message, raw, tmp_path):
    source = write_files(tmp_path / "gan")
    with pytest.raises(InputError, match=message):
        adopt_pool(source, tmp_path / "pool", raw, **{"made_by": "MyGAN", **settings})
    (tmp_path / "cases.txt").write_text("toy_000\ntoy_999\n")
    with pytest.raises(InputError, match="toy_999"):
        adopt_pool(source, tmp_path / "pool", raw, "MyGAN", tmp_path / "cases.txt")
