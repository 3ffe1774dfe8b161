"""What a generator learns from: scaling and geometry can be inverted, and nothing of validation is learnt."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data.cases import Case, open_cases
from scripts.data.geometry import SliceGeometry, VolumeGeometry, fit_geometry, geometry_from_record, own_grid
from scripts.data.provenance import build_provenance, read_provenance, trained, write_provenance
from scripts.data.scaling import Scaling
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.training.evaluation import check_held_out

from .toy import write_preprocessed, write_raw


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def cases(request, tmp_path):
    return open_cases(write_preprocessed(tmp_path / "Dataset901_Toy", channels=2, masked=request.param))


def test_scaling_inverts(cases):
    training = list(cases.training())
    scaling = Scaling.fit(training, per_case=False, masked=cases.masked)
    for case in training:
        scaled = scaling.apply(case)
        assert scaled.min() >= 0 and scaled.max() <= 1
        back, inside = scaling.invert(scaled)
        low, high = (np.array(x).reshape(-1, 1, 1, 1) for x in (scaling.low, scaling.high))
        expected = np.where(case.inside, np.clip(case.image, low, high), 0)
        assert np.allclose(back, expected, atol=1e-4)
        assert np.array_equal(inside, case.inside)
        assert (back[:, ~case.inside] == 0).all()  # exactly: nnU-Net's background
        assert (case.image < low).mean() < 0.01 and (case.image > high).mean() < 0.01
    assert Scaling.from_record(scaling.as_record()) == scaling


def test_raw_cases_are_scaled_one_by_one(tmp_path):
    cases = open_cases(write_raw(tmp_path / "Dataset901_Toy"))
    data = load_training_set(cases, (24, 24))
    means = {case: [] for case in cases.fold.train}
    for item in data.training:
        means[item["case"]].append(float(item["image"][0].mean()))
    levels = [np.mean(v) for v in means.values()]
    assert np.ptp(levels) < 0.1  # the toy's offsets of 10 a case are gone
    assert data.scaling.per_case


@pytest.mark.parametrize("size", [(24, 24), (24, 24, 6)])
@pytest.mark.parametrize("cache_gb", [0, 20e-6, 60e-6])  # a toy case takes 15 kB, a slice on the grid 7 kB
def test_what_is_learnt_does_not_depend_on_the_cache(cases, tmp_path, size, cache_gb):
    whole = load_training_set(cases, size, 0.4, seed=1)
    small = load_training_set(cases, size, 0.4, seed=1, cache_gb=cache_gb, cache_dir=tmp_path / "cache")
    assert (small.scaling, small.geometry, small.seen) == (whole.scaling, whole.geometry, whole.seen)
    for a, b in ((whole.training, small.training), (whole.validation, small.validation)):
        assert len(a) == len(b) > 0
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one.pop("image"), other.pop("image")) and one == other
    tensor, chosen = small.training_tensor(), torch.tensor([3, 0, 3])
    assert torch.equal(tensor[chosen], whole.training_tensor()[chosen]) and tensor.shape[0] == len(small.training)
    assert torch.equal(torch.cat(list(tensor.split(4))), torch.stack([item["image"] for item in whole.training]))
    held = sum(image.nbytes for image in small.training.store._held.values())
    assert held <= cache_gb * 1e9
    assert not list((tmp_path / "cache").iterdir())  # the file has no name: a kill leaves nothing


@pytest.mark.parametrize("cache_gb", [-1, "4", True, float("nan")])
def test_a_cache_has_a_size(cases, cache_gb):
    with pytest.raises(InputError, match="cache_gb"):
        load_training_set(cases, (24, 24), cache_gb=cache_gb)


def test_a_changed_item_changes_no_other(cases):
    data = load_training_set(cases, (24, 24), cache_gb=0)
    before = data.training[0]["image"].clone()
    data.training[0]["image"].zero_()
    assert torch.equal(data.training[0]["image"], before)


@pytest.mark.parametrize("size", [(24, 24), (16, 16), (32, 16)])
def test_geometry_gives_back_what_it_got(size):
    geometry = SliceGeometry.fit([(20, 18), (17, 22)], size)
    assert geometry.field_of_view == (20, 22)
    y, x = np.mgrid[:20, :22] / 20
    smooth = np.stack([y + 0.3 * x, np.sin(2 * y) * x])[None].astype(np.float32)
    grid = geometry.to_grid(smooth, smooth.min(axis=(0, 2, 3)))
    assert tuple(grid.shape) == (1, 2, *size)
    back = geometry.from_grid(grid).numpy()
    assert back.shape == smooth.shape
    exact = all(view <= side for view, side in zip(geometry.field_of_view, size, strict=True))
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert np.abs(back[inner] - smooth[inner]).max() < (1e-6 if exact else 0.05)
    assert geometry_from_record(geometry.as_record()) == geometry


@pytest.mark.parametrize("geometry", [SliceGeometry((32, 32), (48, 48)), VolumeGeometry((32, 32, 8), (48, 48), 12)])
def test_bicubic_leaves_more_of_the_grain(geometry):
    """What is smooth comes back as it was either way; of noise, straight lines leave less."""
    samples = torch.rand((1, 1, *geometry.spatial_size), generator=torch.Generator().manual_seed(0))
    there, finer = geometry.from_grid(samples), geometry.from_grid(samples, "bicubic")
    assert there.shape == finer.shape and finer.std() > 1.1 * there.std()
    flat = torch.full_like(samples, 0.3)
    assert (geometry.from_grid(flat, "bicubic") == flat.max()).all()  # a blank image stays blank to the bit
    assert samples.min() <= finer.min() and finer.max() <= samples.max()


def test_zoom_is_isotropic():
    geometry = SliceGeometry((64, 64), (200, 100))
    ratios = [canvas / side for canvas, side in zip(geometry.canvas, geometry.spatial_size, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.02)


def test_larger_slices_keep_their_centre():
    """A validation case may be larger than any training case."""
    geometry = SliceGeometry((8, 8), (8, 8))
    wide = np.zeros((1, 1, 12, 8), np.float32)
    wide[:, :, 2:10] = np.random.default_rng(0).random((8, 8))
    assert np.array_equal(geometry.to_grid(wide, np.zeros(1)).numpy(), wide[:, :, 2:10])


def smooth_volume(depth: int, height: int = 16, width: int = 12) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (depth, height, width)), indexing="ij")
    return np.stack([np.sin(2 * z) + y * x, z * y])[None].astype(np.float32)


def test_volume_that_fits_the_grid_comes_back_exactly():
    geometry = fit_geometry([(9, 16, 12), (5, 10, 12), (20, 16, 8)], (16, 16, 9))
    assert isinstance(geometry, VolumeGeometry)
    assert (geometry.depth, geometry.field_of_view) == (9, (16, 12))
    volume = smooth_volume(9)
    grid = geometry.to_grid(volume, np.array([-1.0, -2.0]))
    assert grid.shape == (1, 2, 16, 16, 9)
    assert (grid[0, 0, :, :2] == -1).all() and (grid[0, 1, :, :2] == -2).all()  # padded, not stretched
    assert np.array_equal(geometry.from_grid(grid).numpy(), volume)
    assert geometry_from_record(geometry.as_record()) == geometry


@pytest.mark.parametrize("depth, grid_depth", [(24, 12), (12, 24), (17, 12)])
def test_depth_is_stretched_and_comes_back(depth, grid_depth):
    geometry = VolumeGeometry((16, 12, grid_depth), (16, 12), depth)
    volume = smooth_volume(depth)
    grid = geometry.to_grid(volume, np.zeros(2))
    assert grid.shape == (1, 2, 16, 12, grid_depth)
    back = geometry.from_grid(grid).numpy()
    assert back.shape == volume.shape
    assert np.abs(back - volume)[:, :, 2:-2].max() < 0.02


def test_depth_axis_is_the_last_and_runs_the_same_way():
    geometry = VolumeGeometry((16, 12, 6), (16, 12), 6)
    volume = np.zeros((1, 1, 6, 16, 12), np.float32)
    volume[0, 0, 1, 3, 7] = 1
    grid = geometry.to_grid(volume, np.zeros(1))
    assert grid[0, 0, 3, 7, 1] == 1 and grid.sum() == 1


def test_shrinking_the_depth_averages():
    """Plain linear interpolation looks at two slices alone and would take every other one of these for constant."""
    volume = np.zeros((1, 1, 32, 4, 4), np.float32)
    volume[:, :, ::4] = 1
    geometry = VolumeGeometry((4, 4, 8), (4, 4), 32)
    grid = geometry.to_grid(volume, np.zeros(1))
    assert grid.mean() == pytest.approx(0.25, abs=0.02)
    assert grid.std() < 0.05


def test_batch_of_volumes_is_each_volume():
    geometry = VolumeGeometry((8, 8, 5), (16, 12), 9)
    volumes = np.random.default_rng(0).random((3, 2, 9, 16, 12), np.float32)
    grid = geometry.to_grid(volumes, np.zeros(2))
    back = geometry.from_grid(grid)
    for index in range(3):
        alone = geometry.to_grid(volumes[index : index + 1], np.zeros(2))
        assert torch.equal(alone[0], grid[index]) and torch.equal(geometry.from_grid(alone)[0], back[index])


def test_training_slices_are_those_of_the_fold(cases):
    data = load_training_set(cases, (24, 24), background_share=0.0)
    assert {item["case"] for item in data.training} == set(cases.fold.train)
    assert {item["case"] for item in data.validation} == set(cases.fold.val)
    assert [case["id"] for case in data.seen] == cases.fold.train
    assert len(data.training) == 3 * len(cases.fold.train)  # three slices of each toy hold foreground
    joint = data.training_tensor()
    assert joint.shape[1] == data.num_channels == 4
    assert set(joint[:, 2:].unique().tolist()) == {0.0, 1.0}
    assert all(item["image"][2:].any() for item in data.training)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_volumes_are_the_cases_of_the_fold(tmp_path, configuration):
    cases = open_cases(write_preprocessed(tmp_path / "Dataset901_Toy"), configuration=configuration)
    assert cases.spacing == (4.0, 1.5, 1.0)
    data = load_training_set(cases, (20, 18, 6))
    assert [item["case"] for item in data.training] == cases.fold.train
    assert [item["case"] for item in data.validation] == cases.fold.val
    for item in data.training:
        case = cases.load(item["case"])
        image = data.geometry.from_grid(item["image"][None])[0].numpy()
        assert np.array_equal(image[1:], cases.description.to_channels(case.label))
        low, high = data.scaling.low[0], data.scaling.high[0]
        assert np.allclose(data.scaling.invert(image[:1])[0], case.image.clip(low, high), atol=1e-4)
    assert data.training_tensor().shape == (len(cases.fold.train), 3, 20, 18, 6)


def test_volumes_of_raw_cases(tmp_path):
    data = load_training_set(open_cases(write_raw(tmp_path / "Dataset901_Toy")), (20, 18, 6))
    assert data.scaling.per_case and len(data.training) == len(data.seen)


def test_slices_of_a_3d_configuration_are_refused(tmp_path):
    cases = open_cases(write_preprocessed(tmp_path / "Dataset901_Toy"), configuration="3d_fullres")
    with pytest.raises(InputError, match="3D configuration 3d_fullres") as caught:
        load_training_set(cases, (24, 24))
    assert "can enter no nnU-Net training" in str(caught.value)


def test_volumes_with_the_ignore_label_are_left_out(tmp_path):
    folder = write_raw(tmp_path / "Dataset901_Toy", labels={"background": 0, "inner": 1, "outer": 2, "ignore": 3})
    path = folder / "labelsTr/toy_002.nii.gz"
    label = nib.load(path)
    array = np.asarray(label.dataobj).copy()
    array[0, 0, 0] = 3
    nib.save(nib.Nifti1Image(array, label.affine), path)
    data = load_training_set(open_cases(folder, fold="all"), (16, 16, 6))
    assert "toy_002" not in {item["case"] for item in data.training} and len(data.training) == 5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_share_of_slices_without_foreground(cases, share):
    data = load_training_set(cases, (24, 24), background_share=share, seed=3)
    empty = sum(not item["image"][2:].any() for item in data.training)
    assert empty == pytest.approx(share * len(data.training), abs=0.5)
    again = load_training_set(cases, (24, 24), background_share=share, seed=3)
    assert [(i["case"], i["slice"]) for i in data.training] == [(i["case"], i["slice"]) for i in again.training]


def test_slices_with_the_ignore_label_are_left_out(tmp_path):
    folder = write_raw(tmp_path / "Dataset901_Toy", labels={"background": 0, "inner": 1, "ignore": 2})
    data = load_training_set(open_cases(folder), (24, 24), background_share=0.9)
    assert data.num_channels == 2
    assert {item["slice"] for item in data.training if item["image"][1].any()} == {2}  # 3 and 4 hold label 2


def test_settings_out_of_range(cases):
    with pytest.raises(InputError, match="intensities"):
        load_training_set(cases, (24, 24), intensities="asinh")
    with pytest.raises(InputError, match="background_share"):
        load_training_set(cases, (24, 24), background_share=1.0)
    for wrong in ((24,), (24, 24, 24, 24), (24, 0)):
        with pytest.raises(InputError, match="spatial_size"):
            load_training_set(cases, wrong)


def test_provenance_belongs_to_its_checkpoint(cases, tmp_path):
    data = load_training_set(cases, (24, 24))
    checkpoint = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, checkpoint)
    record = build_provenance(data, {"name": "toy", "version": "0"}, 0, {"num_channels": 4}, {})
    path = write_provenance(tmp_path / "provenance.json", record, checkpoint)
    read = read_provenance(path, checkpoint)
    assert [case["id"] for case in read["cases"]] == cases.fold.train
    assert not {case["id"] for case in read["cases"]} & set(cases.fold.val)
    assert trained(path, "num_channels", 2) == 4 and trained(tmp_path / "none.json", "num_channels", 2) == 2
    assert trained(path, "younger", "new", "old") == "old"
    torch.save({"weight": torch.ones(2)}, checkpoint)
    with pytest.raises(InputError, match="is not the checkpoint"):
        read_provenance(path, checkpoint)
    with pytest.raises(InputError, match="no trained generator"):
        read_provenance(tmp_path / "none.json")
    path.write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="99"):
        read_provenance(path)


def test_an_evaluation_on_another_scale_is_refused(cases, tmp_path):
    data = load_training_set(cases, (24, 24))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    record = build_provenance(data, {"name": "toy", "version": "0"}, 0, {"num_channels": 4}, {})
    write_provenance(tmp_path / "provenance.json", record, tmp_path / "model.pt")
    check_held_out(data, tmp_path)
    curved = replace(data, scaling=replace(data.scaling, knee=(0.1, np.inf)))
    with pytest.raises(InputError, match="--intensities"):
        check_held_out(curved, tmp_path)


@pytest.mark.parametrize("per_case", [False, True])
@pytest.mark.parametrize("unit", [1.0, 3e-9, 1e-12, 1e-30, 1e12])
def test_any_range_above_zero_comes_back(unit, per_case):
    shape = (4, 25, 20)  # 2,000 voxels: the percentile lies by a trace beside the last but one
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    image[1] = 0
    image[1, 0, 0, 0] = 1  # all but one voxel of the channel is one value
    case = Case("a", image * np.float32(unit), np.zeros(shape, np.int16), np.ones(shape, bool))
    scaling = Scaling.fit([case], per_case=per_case, masked=False)
    back, _ = scaling.invert(scaling.apply(case))
    low, high = (np.array(ends).reshape(2, 1, 1, 1) for ends in (scaling.low, scaling.high))
    assert (high > low).all()
    assert np.allclose(back / unit, np.clip(case.image.astype(float), low, high) / unit, rtol=1e-5, atol=1e-6)
    assert np.allclose(back[1] / unit, case.image[1] / unit, rtol=1e-6)


def lognormal(unit: float, masked: bool) -> Case:
    """An image whose first channel spans orders of magnitude, as uptake does, and whose second does not."""
    rng, shape = np.random.default_rng(3), (4, 25, 20)
    image = np.stack([rng.lognormal(0, 1.2, shape), rng.normal(0, 1, shape)]).astype(np.float32) * np.float32(unit)
    inside = rng.random(shape) < 0.8 if masked else np.ones(shape, bool)
    return Case("a", np.where(inside, image, 0).astype(np.float32), np.zeros(shape, np.int16), inside)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_case", [False, True])
@pytest.mark.parametrize("unit", [1.0, 3e-9, 1e12])
def test_a_curve_shows_what_lies_low_and_comes_back(unit, per_case, masked):
    case = lognormal(unit, masked)
    line, curve = (Scaling.fit([case], per_case, masked, curved=curved) for curved in (False, True))
    assert line.knee is None and np.isfinite(curve.knee[0]) and np.isinf(curve.knee[1])
    straight, scaled = line.apply(case), curve.apply(case)
    tissue = straight[0][case.inside]
    first, third = np.quantile([tissue, scaled[0][case.inside]], (0.25, 0.75), axis=1)
    assert third[1] - first[1] > 1.5 * (third[0] - first[0])
    assert np.array_equal(straight[1], scaled[1])
    order = np.argsort(tissue)
    assert (np.diff(scaled[0][case.inside][order]) >= 0).all() and 0 <= scaled.min() <= scaled.max() <= 1
    back, inside = curve.invert(scaled)
    low, high = (np.array(ends).reshape(2, 1, 1, 1) for ends in (curve.low, curve.high))
    expected = np.where(case.inside, np.clip(case.image.astype(float), low, high), 0)
    assert np.allclose(back / unit, expected / unit, rtol=1e-4, atol=1e-4) and np.array_equal(inside, case.inside)
    assert Scaling.from_record(json.loads(json.dumps(curve.as_record()))) == curve


def test_what_lies_evenly_or_is_mostly_air_stays_on_a_line():
    shape, rng = (4, 25, 20), np.random.default_rng(0)
    air = np.zeros((1, *shape), np.float32)
    air[0, :, :2] = rng.random((4, 2, 20))  # no tissue to be straight among: nine tenths are one value
    for image in (air, rng.random((1, *shape), np.float32)):
        case = Case("a", image, np.zeros(shape, np.int16), np.ones(shape, bool))
        assert Scaling.fit([case], False, False, curved=True) == Scaling.fit([case], False, False)


def test_a_channel_without_a_range_is_named():
    image = np.ones((2, 2, 4, 4), np.float32)
    image[0, 0] = 2
    case = Case("toy_007", image, np.zeros((2, 4, 4), np.int16), np.ones((2, 4, 4), bool))
    with pytest.raises(InputError, match="channel 1 of case toy_007"):
        Scaling.fit([case], per_case=False, masked=False)


@pytest.mark.parametrize(
    "shapes, limit, multiple, grid",
    [
        ([(9, 60, 35), (7, 52, 38)], (64, 64), 16, [64, 48]),  # holds the largest, padded
        ([(9, 60, 35), (7, 52, 38)], (128, 128), 4, [60, 40]),
        ([(5, 256, 256)], (64, 64), 16, [64, 64]),  # reduced
        ([(5, 240, 120)], (64, 64), 16, [64, 32]),  # without the borders of a square
        ([(5, 240, 120)], (100, 100), 16, [96, 64]),  # the limit holds, rounded down
        ([(9, 60, 35), (40, 52, 38), (50, 50, 30)], (64, 64, 32), 16, [64, 48, 32]),
        ([(9, 60, 35), (21, 52, 38), (50, 50, 30)], (64, 64, 64), 4, [60, 40, 24]),  # the median depth
    ],
)
def test_a_grid_of_its_own_holds_the_data_and_no_more(shapes, limit, multiple, grid):
    assert own_grid(shapes, limit, multiple) == grid
    geometry = fit_geometry(shapes, grid)
    assert geometry.spatial_size == tuple(grid)


def test_an_automatic_grid_is_that_of_the_training_cases(tmp_path):
    cases = open_cases(write_preprocessed(tmp_path / "Dataset901_Toy"))  # slices of 20 x 18
    assert load_training_set(cases, "auto", size_multiple=8).geometry.spatial_size == (24, 24)
    data = load_training_set(cases, "auto", size_limit=(16, 16), size_multiple=4)
    assert data.training[0]["image"].shape[1:] == data.geometry.spatial_size == (16, 16)
    for wrong in ({"spatial_size": "own"}, {"spatial_size": "auto", "size_limit": (8, 8), "size_multiple": 16}):
        with pytest.raises(InputError):
            load_training_set(cases, **wrong)
