"""Images of any size reach the grid as the training cases did, and predictions come back to their own files."""

import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from scripts.data.cases import PHANTOM_NAME, open_cases
from scripts.data.provenance import build_provenance
from scripts.data.training_set import load_training_set
from scripts.phantom.dataset import write_phantom
from scripts.runtime.errors import InputError
from scripts.segmentation import whole_cases
from scripts.segmentation.model_space import ImageReader, ModelSpace, ToGridd, ToLabelMapd
from scripts.segmentation.normalisation import Normalise
from scripts.segmentation.trained import check_trained, trained_channels
from scripts.segmentation.whole_cases import case_name, image_items, labelled_items

from ..data.toy import write_raw
from ..data.toy_nnunet import AFFINE, write_case, write_dataset


def opened(folder, size, **more):
    data = load_training_set(open_cases(folder, **more), size, background_share=0.9)
    return data, ModelSpace.of(data)


def chain(space) -> Compose:
    return Compose([LoadImaged("image", reader=ImageReader(), ensure_channel_first=True), ToGridd("image", space)])


def returned(space, item, logits_of):
    """The label map that comes back when the network answers `logits_of` the grid."""
    to_grid = chain(space)
    done = to_grid({"image": item["image"]})
    done["pred"] = logits_of(done["image"])
    back = Compose([Invertd("pred", to_grid, "image", nearest_interp=False), ToLabelMapd("pred", space)])
    return back(done)["pred"]


@pytest.mark.parametrize("size", [(24, 24), (16, 16), (24, 24, 8)])
@pytest.mark.parametrize("kind", ["raw", "nnunet", "masked"])
def test_training_cases_reach_the_grid_as_in_training(kind, size, tmp_path):
    raw, pre = write_dataset(tmp_path, channels=2, mask=kind == "masked")
    configuration = "2d" if len(size) == 2 else "3d_fullres"
    data, space = opened(raw if kind == "raw" else pre, size, configuration=configuration)
    for case in data.cases.fold.train:
        grid = chain(space)({"image": [str(raw / f"imagesTr/{case}_{c:04d}.nii.gz") for c in range(2)]})["image"]
        assert tuple(grid.shape[1:3]) == size[:2]
        for item in data.training:
            if item["case"] == case:
                ours = grid[..., item["slice"]] if len(size) == 2 else grid
                assert torch.allclose(ours.as_tensor(), item["image"][:2], atol=1e-5)


def as_npz(folder: Path, target: Path) -> Path:
    """A case of the folder as nnU-Net preprocessed it before 2.6."""
    target.mkdir()
    data, seg = (blosc2.open(str(folder / f"toy_001{end}.b2nd"))[:] for end in ("", "_seg"))
    np.savez_compressed(target / "toy_001.npz", data=data, seg=seg)
    shutil.copyfile(folder / "toy_001.pkl", target / "toy_001.pkl")
    return target


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_preprocessed_arrays_and_raw_files_are_the_same_image(configuration, transpose, tmp_path):
    raw, pre = write_dataset(tmp_path, transpose=transpose)
    _, space = opened(pre, (24, 24) if configuration == "2d" else (24, 24, 8), configuration=configuration)
    array = {"image": [str(pre / f"nnUNetPlans_{configuration}/toy_001.b2nd")]}
    files = {"image": [str(raw / "imagesTr/toy_001_0000.nii.gz")]}
    one, two = chain(space)(array)["image"], chain(space)(files)["image"]
    older = as_npz(pre / f"nnUNetPlans_{configuration}", tmp_path / "npz")
    again = chain(space)({"image": [str(older / "toy_001.npz")]})["image"]
    assert torch.equal(one.as_tensor(), again.as_tensor()) and np.array_equal(one.affine, again.affine)
    assert [item["case"] for item in image_items(older, tmp_path)] == ["toy_001"]
    assert torch.allclose(one.as_tensor(), two.as_tensor(), atol=1e-5)
    assert np.allclose(one.affine, two.affine) and np.allclose(two.affine, AFFINE)
    logits = torch.randn(2, *one.shape[1:], generator=torch.Generator().manual_seed(0))
    from_array, from_files = (returned(space, item, lambda _: MetaTensor(logits)) for item in (array, files))
    assert torch.equal(from_array.as_tensor(), from_files.as_tensor())
    assert from_array.shape[1:] == nib.load(files["image"][0]).shape and np.allclose(from_array.affine, AFFINE)


@pytest.mark.parametrize("regions", [False, True])
def test_way_back_is_that_of_nnunet(regions, tmp_path):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    _, pre = write_dataset(tmp_path, regions=regions, transpose=(2, 0, 1))
    data, space = opened(pre, (32, 32))
    folder = pre / "nnUNetPlans_2d"
    shape = data.cases.load("toy_002").label.shape
    logits = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)) * 3
    ours = space.to_file(data.geometry.to_grid(logits.transpose(0, 1).numpy(), np.zeros(2)).permute(1, 2, 3, 0), {
        "shape": shape, "properties": nnUNetDatasetBlosc2(str(folder), ["toy_002"]).load_case("toy_002")[3],
    })  # fmt: skip
    painted = data.cases.description.to_label_map(torch.sigmoid(ours).numpy())
    manager, content = PlansManager(space.plans), json.loads((pre / "dataset.json").read_text())
    # nnU-Net's plain labels have a background channel; its logit 0 stands for our probability of 0.5
    theirs = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits if regions else torch.cat([torch.zeros(1, *shape), logits]), manager, manager.get_configuration("2d"),
        manager.get_label_manager(content), nnUNetDatasetBlosc2(str(folder), ["toy_002"]).load_case("toy_002")[3],
        num_threads_torch=2,
    )  # fmt: skip
    assert len(np.unique(painted)) == 3
    assert np.array_equal(painted, theirs.transpose(2, 1, 0))


@pytest.mark.parametrize("kind, size, configuration", [
    ("raw", (40, 40), "2d"), ("raw", (40, 40, 6), "2d"), ("nnunet", (40, 40), "2d"),
    ("nnunet", (40, 40, 6), "3d_fullres"), ("raw", (16, 16), "2d"),
])  # fmt: skip
def test_a_perfect_network_gives_the_label_back(kind, size, configuration, tmp_path):
    raw, pre = write_dataset(tmp_path, spacing=(1.5, 1.0))
    _, space = opened(raw if kind == "raw" else pre, size, configuration=configuration)
    label = np.asarray(nib.load(raw / "labelsTs/toy_006.nii.gz").dataobj)
    # An image that is its own label: the network has to threshold it alone.
    nib.save(nib.Nifti1Image((label + 1.0).astype(np.float32), AFFINE), tmp_path / "x_0000.nii.gz")

    def answer(grid):
        levels = (grid - grid.min()) / (grid.max() - grid.min())  # background, inner, outer: 0, 1/2, 1
        return torch.cat([0.25 - (levels - 0.5).abs(), levels - 0.75]) * 100

    back = np.asarray(returned(space, {"image": [str(tmp_path / "x_0000.nii.gz")]}, answer)[0])
    assert back.shape == label.shape
    agreement = 2 * ((back == 2) & (label == 2)).sum() / ((back == 2).sum() + (label == 2).sum())
    assert agreement == 1 if size[0] == 40 else agreement > 0.7


OBLIQUE = Rotation.from_euler("xyz", [20, -15, 10], degrees=True).as_matrix()


@pytest.mark.parametrize("size", [(40, 40), (40, 40, 6)])
@pytest.mark.parametrize("z_score", [False, True])
def test_a_raw_image_in_another_voxel_order_gives_the_same(size, z_score, tmp_path):
    """The same anatomy: whatever the axes of the file, the prediction lies on its voxels, to the bit."""
    raw, _ = write_dataset(tmp_path)
    data, space = opened(raw, size)
    space = ModelSpace.of(data, Normalise(data, "z-score").common) if z_score else space
    image = nib.load(raw / "imagesTs/toy_006_0000.nii.gz")
    voxels = np.asarray(image.dataobj, np.float32)
    seen, answers = [], []
    for affine in (image.affine, np.block([[OBLIQUE @ image.affine[:3, :3], image.affine[:3, 3:]], [np.eye(4)[3:]]])):
        for axes in (nib.aff2axcodes(affine), "RAS", "LPS", "SAR", "AIL"):
            turned = nib.Nifti1Image(voxels, affine).as_reoriented(
                ornt_transform(io_orientation(affine), axcodes2ornt(axes))
            )
            nib.save(turned, tmp_path / "x_0000.nii.gz")
            item = {"image": [str(tmp_path / "x_0000.nii.gz")]}
            seen.append(chain(space)(item)["image"].as_tensor())
            back = returned(space, item, lambda x: torch.cat([x - x.mean(), x - 2 * x.std()]))
            assert back.shape[1:] == turned.shape and np.allclose(back.affine, turned.affine, atol=1e-4)
            answer = nib.Nifti1Image(np.asarray(back[0]), turned.affine)
            start = ornt_transform(io_orientation(turned.affine), io_orientation(affine))
            answers.append(np.asarray(answer.as_reoriented(start).dataobj))
    assert all(torch.equal(seen[0], other) for other in seen) and answers[0].any()
    assert all(np.array_equal(answers[0], other) for other in answers)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_raw_image_of_another_spacing_gives_nearly_the_same(factor, tmp_path):
    """Finer voxels in the plane, as another scanner stores them; slices are what they are."""
    raw, _ = write_dataset(tmp_path)
    _, space = opened(raw, (40, 40))
    image = nib.load(raw / "imagesTs/toy_006_0000.nii.gz")
    voxels = gaussian_filter(np.asarray(image.dataobj, np.float32), 1)
    fine = voxels.repeat(factor, 0).repeat(factor, 1)
    answers = []
    for array, steps in ((voxels, [1, 1, 1, 1]), (fine, [1 / factor, 1 / factor, 1, 1])):
        nib.save(nib.Nifti1Image(array, image.affine @ np.diag(steps)), tmp_path / "x_0000.nii.gz")
        back = returned(
            space, {"image": [str(tmp_path / "x_0000.nii.gz")]}, lambda x: torch.cat([x - 0.4, x - 2]) * 100
        )
        assert back.shape[1:] == array.shape
        answers.append(np.asarray(back[0]) > 0)
    coarse = answers[0].repeat(factor, 0).repeat(factor, 1)
    assert 2 * (coarse & answers[1]).sum() / (coarse.sum() + answers[1].sum()) > 0.95


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR"])
def test_plans_that_turn_images_are_followed(axes, tmp_path):
    """Preprocessed arrays of nnU-Net's NibabelIOWithReorient, and the files that they were made from."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    raw, pre = write_dataset(tmp_path)
    _, space = opened(pre, (24, 24))
    space = replace(space, plans={**space.plans, "image_reader_writer": "NibabelIOWithReorient"})
    name = tmp_path / "x_0000.nii.gz"
    image = nib.load(raw / "imagesTr/toy_001_0000.nii.gz")
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes)))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj, np.float32), turned.affine), name)
    manager, configuration = space._nnunet()
    data, properties = NibabelIOWithReorient().read_images([str(name)])
    array, seg, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
        data, None, properties, manager, configuration, {"labels": {"background": 0, "x": 1}}
    )
    write_array(tmp_path / "x.b2nd", array, seg, properties)
    found = []
    for path in (name, tmp_path / "x.b2nd"):
        item = {"image": [str(path)]}
        grid = chain(space)(item)["image"]
        back = returned(space, item, lambda x: torch.cat([x - 0.4, x - 2]))
        assert back.shape[1:] == turned.shape and np.allclose(back.affine, turned.affine)
        found.append((grid.as_tensor(), back.as_tensor()))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5) and torch.equal(found[0][1], found[1][1])
    bright = np.asarray(turned.dataobj) > np.quantile(np.asarray(turned.dataobj), 0.9)
    assert bright[np.asarray(found[0][1][0]) > 0].mean() > 0.6  # at its own place


def write_array(path, data, seg, properties):
    """As nnU-Net's preprocessor writes a case."""
    for array, name in ((data, path), (seg, path.with_name("x_seg.b2nd"))):
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(name), mode="w")
    path.with_suffix(".pkl").write_bytes(pickle.dumps(properties))


def test_a_larger_image_keeps_its_resolution_and_its_rim(tmp_path):
    raw = write_raw(tmp_path / "Dataset901_Toy")  # slices of 20 x 18
    data, space = opened(raw, (16, 16))
    large = np.random.default_rng(0).normal(size=(30, 45, 4)).astype(np.float32)
    large[:3] = 50  # a mark at the rim, which cropping to the centre would lose
    nib.save(nib.Nifti1Image(large, np.diag([1.0, 1.5, 4.0, 1.0])), tmp_path / "x_0000.nii.gz")
    item = {"image": [str(tmp_path / "x_0000.nii.gz")]}
    grid = chain(space)(item)["image"]
    zoom = data.geometry.canvas[0] / 16
    assert tuple(grid.shape) == (1, round(45 / zoom), round(30 / zoom), 4)
    back = returned(space, item, lambda x: torch.cat([x - 0.8, x - 2]))
    assert back.shape[1:] == large.shape and back[0, :2].all() and not back[0, 6:].any()


def refusal(space, images) -> str:
    """What a user of a bundle is shown (MONAI wraps what a transform raises)."""
    with pytest.raises(RuntimeError) as raised:
        chain(space)({"image": [str(path) for path in images]})
    assert isinstance(raised.value.__cause__, InputError)
    return str(raised.value.__cause__)


def test_what_cannot_be_predicted_is_said(tmp_path):
    raw, pre = write_dataset(tmp_path)
    _, space = opened(pre, (24, 24))
    assert "channel" in refusal(space, [raw / f"imagesTr/toy_00{i}_0000.nii.gz" for i in range(2)])
    _, of_raw = opened(raw, (24, 24))
    wrong = tmp_path / "x_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.eye(9, dtype=np.float32), np.diag([2, 2, 4, 1.0])), wrong)
    assert "three axes" in refusal(of_raw, [wrong])
    reorienting = replace(space, plans={**space.plans, "image_reader_writer": "SimpleITKIOWithReorient"})
    for image in (raw / "imagesTr/toy_000_0000.nii.gz", pre / "nnUNetPlans_2d/toy_000.b2nd"):
        assert "SimpleITKIOWithReorient" in refusal(reorienting, [image])
    with pytest.raises(InputError, match="train first"):
        ModelSpace.open(tmp_path / "provenance.json")
    plans = pre / "nnUNetPlans.json"
    plans.write_text(json.dumps({**json.loads(plans.read_text()), "image_reader_writer": "NaturalImage2DIO"}))
    with pytest.raises(InputError, match="plans that read images with NaturalImage2DIO"):  # before any training
        opened(pre, (24, 24))


def test_space_is_stored_with_the_model(tmp_path):
    for folder in write_dataset(tmp_path):
        data, space = opened(folder, (24, 24))
        record = build_provenance(data, {}, 0, {"in_channels": 1, "out_channels": 2}, {
            "plans": space.plans, "axes": space.axes,
        })  # fmt: skip
        (tmp_path / "provenance.json").write_text(json.dumps(record))
        again = ModelSpace.open(tmp_path / "provenance.json")
        assert json.loads(json.dumps(vars(again), default=vars)) == json.loads(json.dumps(vars(space), default=vars))
    assert trained_channels(tmp_path) == {"in_channels": 1, "out_channels": 2}
    assert trained_channels(tmp_path / "nothing") == {"in_channels": 1, "out_channels": 1}


def test_items_of_folders(tmp_path):
    raw, pre = write_dataset(tmp_path, channels=2)
    tests = image_items(raw, tmp_path)
    assert [item["case"] for item in tests] == ["toy_006", "toy_007"] and len(tests[0]["image"]) == 2
    assert image_items(raw / "imagesTs", tmp_path) == tests
    np.savez(raw / "imagesTs/embeddings.npz", np.zeros(3))
    assert image_items(raw / "imagesTs", tmp_path) == tests
    assert [item["case"] for item in image_items(pre / "nnUNetPlans_2d", tmp_path)] == [f"toy_00{i}" for i in range(6)]
    assert case_name({"filename_or_obj": "/a/toy.1_0000.nii.gz"}, None)["subject"] == "toy.1"
    assert case_name({"filename_or_obj": "/a/toy_001.b2nd"}, None)["subject"] == "toy_001"


@pytest.mark.slow
def test_the_phantom_is_predicted_without_a_data_set_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_cases, "write_phantom", partial(write_phantom, cases=5, test_cases=1))
    (item,) = image_items(None, tmp_path)
    assert Path(item["image"][0]).is_file() and not list(tmp_path.iterdir())
    made = write_phantom(tmp_path / PHANTOM_NAME, cases=5, test_cases=2)  # as a training leaves it
    assert [Path(item["image"][0]).parent for item in image_items(None, tmp_path)] == [made / "imagesTs"] * 2


@pytest.mark.parametrize("case", ["p_0000", "p_0000_0000", "p_0001", "a[0]_0000"])
def test_a_case_keeps_its_name(case, tmp_path):
    """A name that ends as the number of a channel does, or holds what a pattern would."""
    for folder, names in (("files", [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"]), ("arrays", [f"{case}.b2nd"])):
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"")
        (item,) = image_items(tmp_path / folder, tmp_path)
        assert item["case"] == case and [Path(path).name for path in item["image"]] == names
        assert case_name({"filename_or_obj": item["image"][0]}, None)["subject"] == case


def test_an_empty_folder_has_no_items(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match="no images"):
        image_items(tmp_path / "raw", tmp_path)


def test_labelled_items(tmp_path):
    raw, pre = write_dataset(tmp_path)
    for folder in (raw, pre):
        cases = open_cases(folder)
        items = labelled_items(cases, "validation")
        assert [item["case"] for item in items] == cases.fold.val
        found = labelled_items(cases, "test", raw)
        assert [item["case"] for item in found] == ["toy_006", "toy_007"]
    with pytest.raises(InputError, match="raw_dir"):
        labelled_items(cases, "test")
    with pytest.raises(InputError, match="split"):
        labelled_items(cases, "training")
    (pre / "gt_segmentations" / f"{cases.fold.val[0]}.nii.gz").unlink()
    with pytest.raises(InputError, match="missing"):
        labelled_items(cases, "validation")
    write_case(raw, "Ts", 9)
    (raw / "imagesTs/toy_009_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="toy_009_0000"):
        labelled_items(cases, "test", raw)


def test_cases_that_were_learnt_from_are_not_evaluated(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    from scripts.runtime.files import file_sha256

    record = {
        "format_version": 1, "network": {"name": "UNet", "channels": [8]}, "fold": 0,
        "cases": [{"id": "a", "sha256": "1"}],
        "training": {"pool": {"generator_cases": ["a", "b"]}}, "weights_sha256": file_sha256(tmp_path / "model.pt"),
    }  # fmt: skip
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    network = {"name": "UNet", "channels": (8,)}
    assert check_trained(tmp_path, network, [{"case": "c"}])["fold"] == 0
    with pytest.raises(InputError, match="trained on a, b"):
        check_trained(tmp_path, network, [{"case": case} for case in "abc"])
    with pytest.raises(InputError, match="UNETR"):
        check_trained(tmp_path, {"name": "UNETR", "channels": [8]})
