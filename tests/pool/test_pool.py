"""A pool is whole or absent, can be resumed and grown, and is a function of (generator, seed) alone."""

import gzip
import json
import weakref

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunet_plugin.pool_format import read_pool as plugin_pool
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from scipy.spatial.transform import Rotation

from scripts.data.cases import PHANTOM_NAME, array_axes, open_cases
from scripts.data.mask_features import mask_features
from scripts.data.provenance import build_provenance, write_provenance
from scripts.data.scaling import Scaling
from scripts.data.training_set import load_training_set
from scripts.networks.hvae import HVAE
from scripts.pool.writing import _nifti, load_sample, partial_dir, read_pool, sample_shape, write_pool
from scripts.runtime.errors import InputError
from scripts.sampling.latent import LatentSampler
from scripts.sampling.sampler import latent_noise

from ..data.toy import write_raw
from ..processes import files_of_at_most
from .toy_generator import NETWORK, VolumeNetwork, contents, make_generator


@pytest.fixture
def sampler(tmp_path):
    return LatentSampler(**make_generator(tmp_path / "generator"))


def test_same_seed_same_files_whatever_the_batch_size(sampler, tmp_path):
    one = write_pool(sampler, tmp_path / "one", 7, seed=3, batch_size=1)
    five = write_pool(sampler, tmp_path / "five", 7, seed=3, batch_size=5)
    other = write_pool(sampler, tmp_path / "other", 7, seed=4, batch_size=5)
    assert contents(one) == contents(five)
    assert contents(one) != contents(other)


@pytest.mark.parametrize("size", [0, 200, 1500])
def test_a_limit_on_the_size_of_files_is_one_error_and_the_same_command_goes_on(sampler, tmp_path, size):
    folder = tmp_path / "pool"
    with files_of_at_most(size), pytest.raises(OSError, match="File too large"):
        write_pool(sampler, folder, 6, progress=False)
    assert not folder.exists()
    write_pool(sampler, folder, 6, progress=False)
    assert contents(folder) == contents(write_pool(sampler, tmp_path / "straight", 6, progress=False))


def test_noise_depends_on_seed_and_index_alone():
    drawn = {(seed, index): latent_noise((2, 3), seed, index) for seed in (0, 1) for index in (0, 1)}
    assert torch.equal(latent_noise((2, 3), 1, 1), drawn[1, 1])
    assert len({tuple(x.flatten().tolist()) for x in drawn.values()}) == 4
    many = torch.stack([latent_noise((8,), 0, index) for index in range(2000)])
    assert many.mean().abs() < 0.03 and (many.std() - 1).abs() < 0.03


class Stop(Exception):
    pass


@pytest.mark.parametrize("whole_rounds", [0, 1, 2])
def test_interrupted_pool_is_refused_and_the_same_command_finishes_it(sampler, tmp_path, monkeypatch, whole_rounds):
    folder = tmp_path / "pool"
    rounds = iter(range(whole_rounds))

    def draw(*args):
        if next(rounds, None) is None:
            raise Stop
        return type(sampler).draw(sampler, *args)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sampler, "draw", draw)
        write_pool(sampler, folder, 6, batch_size=2, progress=False)
    assert not folder.exists() and partial_dir(folder).is_dir()
    with open(partial_dir(folder) / "records.jsonl", "a") as log:
        log.write('{"id": "syn_0000')  # the stop cut a line short
    with pytest.raises(InputError, match="is not finished"):
        read_pool(folder)
    with pytest.raises(InputError, match="other settings"):
        write_pool(sampler, folder, 6, seed=9, progress=False)
    write_pool(sampler, folder, 6, batch_size=2, progress=False)
    assert not partial_dir(folder).exists()
    assert contents(folder) == contents(write_pool(sampler, tmp_path / "straight", 6, progress=False))


def test_two_commands_do_not_write_the_same_pool(sampler, tmp_path, monkeypatch):
    def draw(*args):
        with pytest.raises(InputError, match="another process is writing"):
            write_pool(LatentSampler(**make_generator(tmp_path / "other")), tmp_path / "pool", 3, progress=False)
        return type(sampler).draw(sampler, *args)

    monkeypatch.setattr(sampler, "draw", draw)
    write_pool(sampler, tmp_path / "pool", 3, progress=False)
    assert not (tmp_path / "pool.lock").exists()


def test_images_are_not_kept_in_memory(sampler, tmp_path, monkeypatch):
    alive = []

    def draw(*args):
        assert not any(image() is not None for image in alive)
        drawn = type(sampler).draw(sampler, *args)
        alive.extend(weakref.ref(item["image"]) for item in drawn)
        return drawn

    monkeypatch.setattr(sampler, "draw", draw)
    write_pool(sampler, tmp_path / "pool", 9, batch_size=2, progress=False)
    assert len(alive) == 9


def test_pool_grows_to_what_one_run_gives(sampler, tmp_path):
    grown = write_pool(sampler, tmp_path / "pool", 3, progress=False)
    write_pool(sampler, grown, 8, progress=False)
    assert contents(grown) == contents(write_pool(sampler, tmp_path / "straight", 8, progress=False))
    before = contents(grown)
    write_pool(sampler, grown, 8, progress=False)
    assert contents(grown) == before
    with pytest.raises(InputError, match="holds 8 samples"):
        write_pool(sampler, grown, 5, progress=False)
    with pytest.raises(InputError, match="holds 8 samples"):
        write_pool(sampler, grown, 9, seed=1, progress=False)
    assert contents(grown) == before


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("array", [np.arange(6, dtype=np.uint8), np.linspace(-1, 1, 24, dtype=np.float32)])
def test_files_are_those_that_nibabel_writes(array, axis):
    array, directions = array.reshape(-1, 2, 3) if len(array) > 6 else array.reshape(2, 3), (1, -1, 1)
    order = np.argsort(array_axes(2 if axis is None else axis))
    affine = np.diag([*np.array([3.0, 2.0, 1.5])[order] * directions, 1.0])
    image = nib.Nifti1Image((array if array.ndim == 3 else array[None]).transpose(order), affine)
    if axis is not None:
        image.header.set_dim_info(slice=axis)
    assert gzip.decompress(_nifti(array, [3.0, 2.0, 1.5], axis, directions)) == image.to_bytes()


def test_gzip_holds_no_time(sampler, tmp_path):
    """Else the bytes would change with the second in which they were written."""
    folder = write_pool(sampler, tmp_path / "pool", 2, progress=False)
    for path in folder.rglob("*.nii.gz"):
        assert path.read_bytes()[4:8] == bytes(4)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_samples_are_what_the_contract_says(tmp_path, regions, masked):
    sampler = LatentSampler(**make_generator(tmp_path / "g", channels=2, regions=regions, masked=masked))
    folder = write_pool(sampler, tmp_path / "pool", 4, progress=False)
    record = read_pool(folder)
    assert record["dimension"] == 2 and record["space"]["kind"] == "nnunet_preprocessed"
    assert record["dataset"]["regions_class_order"] == ([1, 2] if regions else None)
    for sample in record["samples"]:
        image, label = load_sample(folder, sample["id"], 2)
        assert image.shape == (2, 1, 20, 18) and label.shape == (1, 20, 18)
        assert image.dtype == np.float32 and np.isfinite(image).all()
        assert set(np.unique(label)) <= {0, 1, 2} and (label > 0).sum() >= 4
        if masked:
            outside = (image == 0).all(axis=0)
            assert (label[outside] == 0).all()
        affine = nib.load(folder / "labels" / f"{sample['id']}.nii.gz").affine
        assert np.array_equal(np.diag(affine), [1.0, 1.5, 4.0, 1.0])
        assert sample["features"]["volume"] == pytest.approx((label > 0).sum() * 1.5)
        assert sample["decision"] == "keep"
    assert [sample["seed"] for sample in record["samples"]] == sorted(sample["seed"] for sample in record["samples"])


@pytest.mark.parametrize("kind", ["raw", "3d_fullres"])
def test_volumes_are_what_the_contract_says(tmp_path, kind):
    arguments = make_generator(tmp_path / "g", volumes=kind)
    sampler = LatentSampler(**arguments)
    folder = write_pool(sampler, tmp_path / "pool", 4, seed=1, progress=False)
    record = read_pool(folder)
    assert record["dimension"] == 3 and record["provenance"]["geometry"]["depth"] == 6
    for sample in record["samples"]:
        image, label = load_sample(folder, sample["id"], 1)
        assert image.shape == (1, 6, 20, 18) and label.shape == (6, 20, 18)
        drawn = sampler.draw(range(sample["seed"], sample["seed"] + 1), 1)[0]
        assert np.array_equal(drawn["image"], image) and np.array_equal(drawn["label"], label)
        file = nib.load(folder / "labels" / f"{sample['id']}.nii.gz")
        assert np.array_equal(np.diag(file.affine), [1.0, 1.5, 4.0, 1.0])
        assert sample["features"] == mask_features(label > 0, (4.0, 1.5, 1.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_shape_of_a_sample_is_read_without_its_voxels(tmp_path, axis):
    (tmp_path / "labels").mkdir()
    file = tmp_path / "labels/syn_000000.nii.gz"
    file.write_bytes(_nifti(np.zeros((3, 4, 5), np.uint8), [1.0, 1.0, 1.0], axis, (1, 1, 1)))
    assert sample_shape(tmp_path, "syn_000000") == (3, 4, 5)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:352]))
    assert sample_shape(tmp_path, "syn_000000") == (3, 4, 5)


def test_a_damaged_sample_is_one_error(tmp_path):
    def nifti(shape):
        return _nifti(np.zeros(shape, np.float32), [1.0, 1.0, 1.0], None, (1, 1, 1))

    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    image, label = tmp_path / "images/syn_000000_0000.nii.gz", tmp_path / "labels/syn_000000.nii.gz"
    good = nifti((1, 4, 5))
    huge = bytearray(gzip.decompress(good))
    huge[42:48] = 3 * (32000).to_bytes(2, "little")
    for path in (image, label):
        for content in (None, b"", b"no image", good[:60], nifti((1, 5, 4)), gzip.compress(bytes(huge))):
            image.write_bytes(good)
            label.write_bytes(good)
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(InputError, match="syn_000000.*(cannot be read|label)") as error:
                load_sample(tmp_path, "syn_000000", 1)
            assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("axes, angle", [("RAS", 15), ("LPS", 0), ("ASL", 0), ("SAR", 15), ("IRP", 15)])
def test_raw_volumes_have_the_axes_of_the_raw_files(axes, angle, tmp_path):
    """nnU-Net preprocesses them like the raw cases: whether its reader turns files or not, a mask lies as in theirs."""
    data_set = write_raw(tmp_path / "Dataset901_Toy")
    place = np.eye(4)
    place[:3] = np.column_stack([Rotation.from_euler("xyz", [angle, -angle, 5], True).as_matrix(), [10, -20, 5]])
    for path in data_set.glob("*Tr/*.nii.gz"):
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), place @ nib.load(path).affine)
        turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes)))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    cases = open_cases(data_set)
    depth, height, width = cases.load(cases.fold.train[0]).label.shape
    data = load_training_set(cases, (height, width, depth))
    network = VolumeNetwork(3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    record = build_provenance(data, {"name": "toy", "version": "0"}, 0, {}, {})
    provenance = write_provenance(tmp_path / "provenance.json", record, tmp_path / "model.pt")
    sampler = LatentSampler(network, tmp_path / "model.pt", provenance)
    items = {item["case"]: item["image"] for item in data.training}
    sampler._generate = lambda *_: (torch.stack([*items.values()][:1]), [None])  # a generator that copies a case
    sampler.scaling = Scaling((0.0,), (1.0,))
    folder = write_pool(sampler, tmp_path / "pool", 1, progress=False)
    files = data_set / "labelsTr" / f"{next(iter(items))}.nii.gz", folder / "labels/syn_000000.nii.gz"
    real, made = map(nib.load, files)
    assert np.array_equal(np.asarray(made.dataobj), np.asarray(real.dataobj))
    assert np.allclose(made.affine, real.affine, atol=1e-5)
    for reader in (NibabelIO(), NibabelIOWithReorient(), SimpleITKIO(), SimpleITKIOWithReorient()):
        (one, record), (other, same) = (reader.read_seg(str(file)) for file in files)
        assert np.array_equal(one, other) and np.allclose(record["spacing"], same["spacing"]), type(reader)
    assert np.array_equal(load_sample(folder, "syn_000000", 1)[1], cases.load(next(iter(items))).label)
    features = read_pool(folder)["samples"][0]["features"]
    assert features == mask_features(cases.load(next(iter(items))).label > 0, cases.spacing)


def test_every_sample_can_be_made_again(sampler, tmp_path):
    folder = write_pool(sampler, tmp_path / "pool", 5, seed=2, progress=False)
    sample = read_pool(folder)["samples"][3]
    batch = next(sampler(1, seed=2, start=sample["seed"]))
    image, label = load_sample(folder, sample["id"], 1)
    assert np.array_equal(batch["image"][0], image[:, 0]) and np.array_equal(batch["label"][0], label[0])


def test_checkpoint_of_another_architecture(tmp_path):
    arguments = make_generator(tmp_path / "g")
    other = HVAE(num_channels=3, **{**NETWORK, "channels": [8, 8]})
    with pytest.raises(InputError, match="another architecture.*") as caught:
        LatentSampler(**{**arguments, "network": other})
    assert "[8, 16]" in str(caught.value)


def nested(state):
    return {"state_dict": state}


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


def with_nan(state):
    return {name: value * torch.nan if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("change", [nested, prefixed, with_nan, lambda _: [1], lambda _: None, None])
def test_weights_that_are_none_are_one_error(change, tmp_path):
    """Whoever wrote them, and their hash into the record."""
    given = make_generator(tmp_path / "g")
    path, record = given["checkpoint"], given["provenance"]
    if change is None:
        path.write_bytes(b"no weights")
    else:
        torch.save(change(torch.load(path, weights_only=True)), path)
    write_provenance(record, json.loads(record.read_text()), path)
    with pytest.raises(InputError, match="model.pt (cannot be loaded|with values in|is of another)") as error:
        LatentSampler(**given)
    assert len(str(error.value).splitlines()) == 1


def test_sampling_from_a_phantom_says_so(tmp_path, caplog):
    given = make_generator(tmp_path / "g")
    LatentSampler(**given)
    assert "phantom" not in caplog.text
    record = json.loads(given["provenance"].read_text())
    record["description"]["name"] = PHANTOM_NAME
    given["provenance"].write_text(json.dumps(record))
    LatentSampler(**given)
    assert f"learnt from the phantom {PHANTOM_NAME}" in caplog.text


def test_what_shapes_do_not_show_is_compared_too(tmp_path):
    """As many weights with other heads, or a velocity taken for noise, would draw something else without a word."""
    given, same = make_generator(tmp_path / "g"), {"num_channels": 3, **NETWORK}
    LatentSampler(**given, arguments=same)
    with pytest.raises(InputError, match=r"attention_heads 1 \(now 2\)"):
        LatentSampler(**given, arguments={**same, "attention_heads": 2})


def test_settings_out_of_range_write_nothing(sampler, tmp_path):
    for wrong in ({"num_samples": 0}, {"num_samples": 3, "batch_size": 0}, {"num_samples": 3, "seed": -1}):
        with pytest.raises(InputError):
            write_pool(sampler, tmp_path / "pool", **wrong)
    with pytest.raises(InputError, match="unconditional"):
        write_pool(sampler, tmp_path / "pool", 2, condition={"volume": 1}, progress=False)
    assert not (tmp_path / "pool").exists() and not partial_dir(tmp_path / "pool").exists()


def test_a_pool_goes_where_nothing_else_is(sampler, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert len(read_pool(write_pool(sampler, tmp_path / "empty", 2, progress=False))["samples"]) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path / "mine", tmp_path / "file", "."):  # the folder that one stands in would be another one
        with pytest.raises(InputError, match="which is no pool"):
            write_pool(sampler, folder, 2, progress=False)
    with pytest.raises(InputError, match="no pool"):
        read_pool(".")
    monkeypatch.chdir(tmp_path / "empty")
    assert len(read_pool(".")["samples"]) == len(plugin_pool(".").kept) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "generator", "here", "mine"]


@pytest.mark.slow
def test_generator_that_makes_no_mask_is_stopped(tmp_path):
    sampler = LatentSampler(**{**make_generator(tmp_path / "g"), "min_foreground": 10**6})
    with pytest.raises(InputError, match="0 of them with 1000000 voxels"):
        write_pool(sampler, tmp_path / "pool", 2, progress=False)
    assert not partial_dir(tmp_path / "pool").exists()  # so that another min_foreground can be tried


def test_stop_around_the_rename_is_mended(sampler, tmp_path):
    """Between the last record and the rename: the partial folder holds the whole pool."""
    straight = contents(write_pool(sampler, tmp_path / "straight", 4, progress=False))
    folder = write_pool(sampler, tmp_path / "pool", 4, progress=False)
    folder.rename(partial_dir(folder))
    with pytest.raises(InputError, match="4 samples already"):
        write_pool(sampler, folder, 3, progress=False)
    with pytest.raises(InputError, match="other settings"):
        write_pool(sampler, folder, 4, seed=1, progress=False)
    write_pool(sampler, folder, 4, progress=False)
    assert contents(folder) == straight


def test_other_formats_are_refused(sampler, tmp_path):
    folder = write_pool(sampler, tmp_path / "pool", 2, progress=False)
    record = json.loads((folder / "pool.json").read_text())
    for version, remedy in ((3, "sample the pool again"), (1, "synthaug hash-pool")):
        (folder / "pool.json").write_text(json.dumps({**record, "format_version": version}))
        with pytest.raises(InputError, match=remedy):
            read_pool(folder)
    with pytest.raises(InputError, match=r"no pool\.json"):
        read_pool(tmp_path)


def test_mask_features_of_known_shapes():
    z, y, x = np.mgrid[:40, :40, :40]
    ball = (z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 <= 12**2
    features = mask_features(ball, (1, 1, 1))
    assert features["volume"] == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    assert features["surface_area"] == pytest.approx(4 * np.pi * 12**2, rel=0.1)
    assert features["sphericity"] == pytest.approx(1, abs=0.1)
    assert features["centre"] == pytest.approx([20.5] * 3) and features["extent"] == [25.0] * 3
    stretched = mask_features(ball, (3, 1, 1))
    assert stretched["volume"] == pytest.approx(3 * features["volume"])
    assert stretched["sphericity"] < 0.9 * features["sphericity"]
    disc = mask_features(ball[20], (2, 2))
    assert disc["volume"] == pytest.approx(np.pi * 24**2, rel=0.03)
    assert disc["surface_area"] == pytest.approx(2 * np.pi * 24, rel=0.1)
    assert mask_features(np.zeros((4, 4)), (1, 1))["volume"] == 0
