"""add-pool: what it writes, and that bad input is refused before anything is written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import blosc2
import nnunet_plugin
import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_plugin.__main__ import main
from nnunet_plugin.cpu_plans import write_cpu_plans
from nnunet_plugin.errors import InputError
from nnunet_plugin.import_pool import add_pool, read_import
from nnunet_plugin.preprocessed import PreprocessedDataset, read_plans, resolve_configuration

from .conftest import rehash

PLAIN, REGIONS, IGNORE = "Dataset901_Plain", "Dataset902_Regions", "Dataset903_Ignore"


def rewrite(file: Path, edit) -> None:
    """Change the array of a NIfTI file, keeping its grid."""
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(edit(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))
    rehash(file.parents[1])


def open_case(folder: Path, case: str):
    arrays = [blosc2.open(str(folder / f"{case}{end}.b2nd"))[:] for end in ("", "_seg")]
    return *arrays, pickle.loads((folder / f"{case}.pkl").read_bytes())


def test_slices_enter_unchanged(make_pool, nnunet):
    result = add_pool(make_pool(dropped=3), 901, 0)
    assert result["samples"] == 12 and result["imported"]
    data, seg, properties = open_case(result["pool_folder"], "syn_000007")
    pair = [nnunet / "pool" / name for name in ("images/syn_000007_0000.nii.gz", "labels/syn_000007.nii.gz")]
    image, label = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in pair)
    assert data.shape == (1, 1, 24, 24) and data.dtype == np.float32 and seg.dtype == np.int16
    assert np.array_equal(data[0], image) and np.array_equal(seg[0], label)
    assert sorted(map(tuple, properties["class_locations"][1])) == [tuple(i) for i in np.argwhere(seg == 1)]
    assert not list(result["pool_folder"].glob("syn_000012*"))  # dropped by the audit
    plans = json.loads(result["plans_file"].read_text())
    assert plans["plans_name"] == result["plans_file"].stem == "nnUNetPlansSynthAug"
    assert plans["configurations"]["2d_syn50"]["inherits_from"] == "2d"
    assert plans["configurations"]["2d_syn50"]["synthaug"]["share"] == 0.5


def test_a_small_pool_is_told_by_add_pool_and_in_the_log(make_pool, make_trainer, capsys):
    for samples, told in ((9, True), (25, False)):
        add_pool(make_pool(f"pool{samples}", samples=samples), 901, 0, name=f"with{samples}")
        assert ("WARNING: a pool of 9 samples" in capsys.readouterr().err) == told
        trainer = make_trainer(f"with{samples}", plans="nnUNetPlansSynthAug")
        trainer._set_batch_size_and_oversample()
        trainer.get_tr_and_val_datasets()
        assert ("WARNING: a pool of 9 samples" in Path(trainer.log_file).read_text()) == told


def test_splits_are_those_of_nnunet(make_pool, nnunet, make_trainer, split):
    add_pool(make_pool(), 901, 0, plans="nnUNetPlansCPU")
    written = json.loads((nnunet / "preprocessed" / PLAIN / "splits_final.json").read_text())
    (nnunet / "preprocessed" / PLAIN / "splits_final.json").unlink()
    train, val = make_trainer("2d_syn50").do_split()  # nnU-Net writes its own
    assert train == written[0]["train"] == split(0) and val == written[0]["val"]
    assert written == json.loads((nnunet / "preprocessed" / PLAIN / "splits_final.json").read_text())


def test_classes_of_regions_and_ignore_label(make_pool, nnunet):
    """The keys of class_locations are those that nnU-Net's preprocessing writes for the real cases."""
    for dataset in (REGIONS, IGNORE):
        result = add_pool(make_pool(f"pool_{dataset}", dataset), dataset, 0)
        _, seg, properties = open_case(result["pool_folder"], "syn_000000")
        _, _, real = open_case(nnunet / "preprocessed" / dataset / "nnUNetPlans_2d", "case_0")
        assert list(properties["class_locations"]) == list(real["class_locations"])
        for key, places in properties["class_locations"].items():
            values = set(key) if isinstance(key, tuple) else {key}
            assert {int(seg[tuple(place)]) for place in places} <= values and len(places)


def test_outside_of_the_mask_is_marked(make_pool, nnunet):
    """With use_mask_for_norm nnU-Net's masking needs -1 outside, but not in holes inside."""
    plans = json.loads((nnunet / "preprocessed" / PLAIN / "nnUNetPlans.json").read_text())
    assert plans["configurations"]["2d"]["use_mask_for_norm"] == [True]
    pool = make_pool()

    def cut(array):
        array[:, :, :3] = 0
        array[:, 20, 20] = 0
        return array

    rewrite(pool / "images" / "syn_000000_0000.nii.gz", cut)
    result = add_pool(pool, 901, 0)
    _, seg, _ = open_case(result["pool_folder"], "syn_000000")
    assert (seg[..., :3] == -1).all() and (seg[..., 3:] >= 0).all()


@pytest.mark.slow
def test_raw_volumes_go_through_the_preprocessor(make_pool, nnunet):
    """A raw pool made of a real case's own files gives that case's preprocessed arrays, in 2d and 3d_fullres."""
    raw = Path(os.environ["nnUNet_raw"]) / PLAIN
    pool = make_pool("raw_pool", configuration="3d_fullres", samples=1, kind="raw")
    shutil.copy(raw / "imagesTr" / "case_3_0000.nii.gz", pool / "images" / "syn_000000_0000.nii.gz")
    shutil.copy(raw / "labelsTr" / "case_3.nii.gz", pool / "labels" / "syn_000000.nii.gz")
    rehash(pool)
    for configuration in ("3d_fullres", "2d"):
        result = add_pool(pool, 901, 0, configuration, pool_name=f"raw_{configuration}")
        ours = open_case(result["pool_folder"], "syn_000000")
        real = open_case(nnunet / "preprocessed" / PLAIN / f"nnUNetPlans_{configuration}", "case_3")
        assert np.array_equal(ours[0], real[0]) and np.array_equal(ours[1], real[1])
        assert np.array_equal(ours[2]["class_locations"][1], real[2]["class_locations"][1])


def test_volumes_enter_2d_when_the_planes_are_the_same(make_pool, snapshot):
    """nnU-Net resamples the slice axis in 3d_fullres alone, so only spacing in plane and normalisation must agree."""
    pool = make_pool("volumes", configuration="3d_fullres", samples=2)
    ours = {name: open_case(add_pool(pool, 901, 0, name, pool_name=name)["pool_folder"], "syn_000001")
            for name in ("2d", "3d_fullres")}  # fmt: skip
    assert np.array_equal(ours["2d"][0], ours["3d_fullres"][0]) and np.array_equal(ours["2d"][1], ours["3d_fullres"][1])
    before = snapshot()
    for edit in (
        lambda content: content["space"].update(spacing=[3.0, 2.0, 2.0]),
        lambda content: content["space"].update(normalization_schemes=["CTNormalization"]),
    ):
        other = make_pool(f"other_{edit.__code__.co_firstlineno}", configuration="3d_fullres", samples=1, edit=edit)
        with pytest.raises(InputError, match="another space"):
            add_pool(other, 901, 0, "2d")
    assert snapshot() == before
    slices = make_pool("slices", samples=2, edit=lambda content: content["space"].update(data_identifier="x_2d"))
    with pytest.raises(InputError, match="data_identifier = "):
        add_pool(slices, 901, 0, "2d")


def test_again_changes_nothing_and_shares_use_one_copy(make_pool, snapshot, split):
    pool = make_pool()
    first = add_pool(pool, 901, 0)
    before = snapshot()
    again = add_pool(pool, "Dataset901_Plain", 0)
    assert not again["imported"] and {**again, "imported": True} == first and snapshot() == before
    other = add_pool(pool, 901, 0, share=0.25)
    assert other["configuration"] == "2d_syn25" and not other["imported"]
    assert set(snapshot()) == set(before)
    configurations = json.loads(other["plans_file"].read_text())["configurations"]
    assert {"2d", "3d_fullres", "2d_syn25", "2d_syn50"} <= set(configurations)
    # A pool is imported fold by fold, each with its own generator; the configuration serves all folds.
    second = make_pool("of_fold_1", fold=1)
    third = add_pool(second, 901, 1, pool_name="pool")
    assert third["imported"] and third["pool_folder"].name == "fold_1"


def test_conflicts_are_refused_and_overwritten_on_request(make_pool, snapshot):
    add_pool(make_pool(), 901, 0)
    before = snapshot()
    other = make_pool("other", samples=5)
    with pytest.raises(InputError, match="another pool in"):
        add_pool(other, 901, 0, pool_name="pool")
    with pytest.raises(InputError, match="another configuration 2d_syn50"):
        add_pool(other, 901, 0)
    assert snapshot() == before
    result = add_pool(other, 901, 0, pool_name="pool", warmup_epochs=1, overwrite=True)
    assert len(list(result["pool_folder"].glob("*.pkl"))) == 5
    assert "partial" not in " ".join(snapshot())


def test_a_training_goes_on_with_the_pool_that_it_began_with(make_pool, make_trainer):
    """The same samples imported again are the same pool; others are not, and a training from the start takes them."""
    pool = make_pool(samples=2)
    add_pool(pool, 901, 0)
    trainer = make_trainer("2d_syn50", plans="nnUNetPlansSynthAug")
    trainer._set_batch_size_and_oversample()
    trainer.get_tr_and_val_datasets()
    trainer.current_epoch = 1  # as when a checkpoint was loaded
    add_pool(pool, 901, 0, overwrite=True)
    trainer.get_tr_and_val_datasets()
    add_pool(make_pool("other", samples=3), 901, 0, pool_name="pool", overwrite=True)
    with pytest.raises(InputError, match="began with other data: pool changed since"):
        trainer.get_tr_and_val_datasets()
    trainer.current_epoch = 0
    trainer.get_tr_and_val_datasets()


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no list of open files")
def test_nothing_is_open_in_a_pool_that_is_renamed(make_pool, renamed):
    for overwrite in (False, True):
        add_pool(make_pool(samples=2), 901, 0, overwrite=overwrite)
    assert len(renamed) == 3


def test_space_check_ignores_batch_size_and_architecture(make_pool):
    write_cpu_plans(901, plans_out="small", max_features=32, batch_size=2)
    result = add_pool(make_pool(), 901, 0, plans="small")
    assert result["plans"] == "smallSynthAug"


def test_stale_plans_are_refused(make_pool, nnunet):
    pool = make_pool()
    add_pool(pool, 901, 0)
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["2d"]["batch_size"] += 1
    file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match="made from plans other than"):
        add_pool(pool, 901, 0, share=0.25)
    result = add_pool(pool, 901, 0, share=0.25, overwrite=True)
    configurations = json.loads(result["plans_file"].read_text())["configurations"]
    assert configurations["2d"] == plans["configurations"]["2d"] and "2d_syn50" in configurations


def field(path, value):
    """Return an edit of pool.json that sets one field; the value `del` removes it."""

    def edit(pool):
        *parents, last = path.split(".")
        for key in parents:
            pool = pool[key]
        if value is del_:
            del pool[last]
        else:
            pool[last] = value

    return edit


del_ = object()
TWO_CHANNELS = {"0": "FLAIR", "1": "T1"}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format_version", 3, "upgrade synthaug"),
        ("format_version", 1, "synthaug hash-pool"),
        ("format", "other", "of another kind"),
        ("space", del_, "space.kind"),
        ("dimension", 4, "dimension"),
        ("space.kind", "atlas", "space.kind"),
        ("samples", [{"id": "../x", "decision": "keep"}], "no usable id"),
        ("samples", [{"id": "a", "decision": "maybe"}], "no usable id and decision"),
        ("samples", [{"id": "a", "decision": "keep"}] * 2, "occur twice"),
        ("samples", [{"id": "syn_000000", "decision": "keep", "sha256": "0"}], "no usable sha256"),
        ("samples", [], "no sample to keep"),
        ("provenance.cases", [], "whose cases are"),
        ("provenance.cases", ["case_99"], "without the hash of case_99"),
        ("provenance.cases", [{"id": "case_99", "sha256": "0" * 64}], "does not have: case_99"),
        ("provenance.dataset", "Dataset005_Other", "a pool of Dataset005_Other"),
        ("dataset.name", "Dataset005_Other", "a pool of Dataset005_Other"),
        ("dataset.channel_names", TWO_CHANNELS, "_0001.nii.gz"),
        ("dataset.channel_names", {"0": "T1"}, "channel_names"),
        ("dataset.labels", {"background": 0, "liver": 1}, "labels ="),
        ("dataset.regions_class_order", [1], "regions_class_order"),
        ("space.data_identifier", "otherPlans_2d", "data_identifier = "),
        ("space.spacing", [3.0, 1.0, 2.0], "spacing = "),
        ("space.transpose_forward", [2, 0, 1], "transpose_forward = "),
        ("space.normalization_schemes", ["CTNormalization"], "normalization_schemes = "),
        ("space.use_mask_for_norm", [False], "use_mask_for_norm = "),
        ("space.foreground_intensity_properties_per_channel", {}, "foreground_intensity"),
        ("space.kind", "raw", "pool of raw slices"),
    ],
)
def test_pools_that_do_not_fit_are_refused(make_pool, snapshot, path, value, named):
    pool = make_pool(samples=2, edit=field(path, value))
    before = snapshot()
    with pytest.raises(InputError, match="remedy:") as caught:
        add_pool(pool, 901, 0)
    assert named in str(caught.value)
    assert snapshot() == before


def test_another_number_of_channels(make_pool):
    pool = make_pool(samples=2, edit=field("dataset.channel_names", TWO_CHANNELS))
    for k in range(2):
        shutil.copy(pool / "images" / f"syn_00000{k}_0000.nii.gz", pool / "images" / f"syn_00000{k}_0001.nii.gz")
    with pytest.raises(InputError, match="2 channels"):
        add_pool(pool, 901, 0)


def replace(value):
    def edit(array):
        array[0, 5, 5] = value
        return array

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        ("images/syn_000001_0000.nii.gz", replace(np.nan), "NaN"),
        ("images/syn_000001_0000.nii.gz", replace(np.inf), "infinite"),
        ("images/syn_000001_0000.nii.gz", lambda array: 0 * array, "is constant"),
        ("labels/syn_000001.nii.gz", replace(2), r"the labels \[2\]"),
    ],
)
def test_bad_arrays_are_refused(make_pool, snapshot, file, edit, named):
    pool = make_pool(samples=3)
    rewrite(pool / file, edit)
    before = snapshot()
    with pytest.raises(InputError, match=named):
        add_pool(pool, 901, 0)
    assert snapshot() == before  # the sample before it was written, and is gone


@pytest.mark.parametrize("change", ["shape", "origin", "direction", "missing", "spacing", "stack", "garbage"])
def test_bad_pairs_are_refused(make_pool, snapshot, change):
    pool = make_pool(samples=3)
    files = [pool / "images/syn_000001_0000.nii.gz", pool / "labels/syn_000001.nii.gz"]
    image, label = (sitk.ReadImage(str(file)) for file in files)
    named = "different grids"
    if change == "shape":
        label = label[:20]
    elif change == "origin":
        label.SetOrigin((0.0, 2.0, 0.0))
    elif change == "direction":
        label.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    elif change == "spacing":
        named = "the spacing of its pool"
        for part in (image, label):
            part.SetSpacing((2.0, 1.0, 3.0))
    elif change == "stack":
        named = "slices as NIfTI of shape"
        image, label = (sitk.JoinSeries([part[:, :, 0]] * 2) for part in (image, label))
    sitk.WriteImage(image, str(files[0]))
    sitk.WriteImage(label, str(files[1]))
    if change == "missing":
        named = r"syn_000001 without labels/syn_000001.nii.gz"
        files[1].unlink()
    elif change == "garbage":
        named = "sample syn_000001"
        files[0].write_bytes(b"not a NIfTI file")
    rehash(pool)
    before = snapshot()
    with pytest.raises(InputError, match=named):
        add_pool(pool, 901, 0)
    assert snapshot() == before


def test_interrupted_and_broken_pools_are_refused(make_pool, nnunet, snapshot):
    pool = make_pool(samples=2)
    before = snapshot()
    partial = pool.rename(nnunet / "pool.partial")
    for path in (partial, nnunet / "pool"):
        with pytest.raises(InputError, match="interrupted"):
            add_pool(path, 901, 0)
    partial.rename(pool)
    (pool / "pool.json").write_text((pool / "pool.json").read_text()[:-20])
    with pytest.raises(InputError, match="not valid JSON"):
        add_pool(pool, 901, 0)
    (pool / "pool.json").unlink()
    with pytest.raises(InputError, match=r"no pool\.json"):
        add_pool(pool, 901, 0)
    with pytest.raises(InputError, match=r"no pool\.json"):
        add_pool(nnunet / "nowhere", 901, 0)
    assert snapshot() == before


def test_leak_is_refused_and_names_the_cases(make_pool, snapshot, split):
    pool = make_pool()
    leaked = sorted(set(split(0)) - set(split(2)))
    before = snapshot()
    with pytest.raises(InputError, match="a leak") as caught:
        add_pool(pool, 901, 2)
    assert leaked and all(case in str(caught.value) for case in leaked)
    assert not any(case in str(caught.value) for case in set(split(0)) - set(leaked))
    assert snapshot() == before
    assert add_pool(pool, 901, "all")["pool_folder"].name == "fold_all"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"fold": 5}, "0 to 4, or all"),
        ({"fold": -1}, "fold -1"),
        ({"fold": "first"}, "fold 'first'"),
        ({"dataset": 77}, "one of: Dataset901_Plain"),
        ({"dataset": "Dataset9"}, "Dataset9"),
        ({"configuration": "3d_lowres"}, "2d, 3d_fullres"),
        ({"configuration": "3d_fullres"}, "slices for a 3D configuration"),
        ({"plans": "myPlans"}, "nnUNetPlans, nnUNetPlansCPU"),
        ({"plans_out": "nnUNetPlans"}, "the plans themselves"),
        ({"plans_out": "a__b"}, "no `__`"),
        ({"name": "2d"}, "name = 2d"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"share": 2}, "share = 2"),
        ({"training": {"lr": 1}}, "unknown setting `lr`"),
    ],
)
def test_bad_arguments_are_refused(make_pool, snapshot, arguments, named):
    pool = make_pool(samples=2)
    before = snapshot()
    with pytest.raises(InputError) as caught:
        add_pool(**{"pool": pool, "dataset": 901, "fold": 0, **arguments})
    assert named in str(caught.value)
    assert snapshot() == before


def test_plans_that_nobody_can_read_are_refused(tmp_path):
    for content in ({}, {"configurations": []}, {"configurations": {}, "plans_name": "p", "transpose_forward": None}):
        (tmp_path / "p.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="as nnU-Net wrote them"):
            read_plans(PreprocessedDataset(tmp_path, {}), "p")
    for wrong in (5, {"inherits_from": "2d"}):
        with pytest.raises(InputError, match="nnU-Net cannot read"):
            resolve_configuration({"plans_name": "p", "configurations": {"2d": wrong}}, "2d")


def test_cascade_and_mixed_configurations_are_refused(make_pool, nnunet):
    pool = make_pool("volumes", configuration="3d_fullres", samples=2)
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match="cascade"):
        add_pool(pool, 901, 0, "cascade")
    result = add_pool(pool, 901, 0, "3d_fullres")
    with pytest.raises(InputError, match="mixes already"):
        add_pool(pool, 901, 0, "3d_fullres_syn50", plans=result["plans"])


@pytest.mark.parametrize("value", [None, "/nowhere/at/all"])
def test_environment_variable_is_checked(make_pool, monkeypatch, value):
    pool = make_pool(samples=2)
    if value is None:
        monkeypatch.delenv("nnUNet_preprocessed")
    else:
        monkeypatch.setenv("nnUNet_preprocessed", value)
    with pytest.raises(InputError, match="export nnUNet_preprocessed="):
        add_pool(pool, 901, 0)


def test_preprocessed_data_and_splits_must_be_there(make_pool, nnunet):
    pool = make_pool(samples=2)
    base = nnunet / "preprocessed" / PLAIN
    (base / "splits_final.json").write_text('{"train": []}')
    with pytest.raises(InputError, match="unreadable"):
        add_pool(pool, 901, 0)
    shutil.rmtree(base / "nnUNetPlans_2d")
    with pytest.raises(InputError, match="nnUNetv2_preprocess"):
        add_pool(pool, 901, 0)


def test_failed_import_keeps_the_former_one(make_pool, nnunet, snapshot):
    add_pool(make_pool(), 901, 0)
    before = snapshot()
    other = make_pool("other", samples=3)
    rewrite(other / "images" / "syn_000002_0000.nii.gz", replace(np.nan))
    with pytest.raises(InputError, match="NaN"):
        add_pool(other, 901, 0, pool_name="pool", overwrite=True)
    assert snapshot() == before


def test_import_record_is_checked(make_pool, nnunet):
    from nnunet_plugin.preprocessed import find_dataset

    folder = add_pool(make_pool(samples=3), 901, 0)["pool_folder"]
    assert read_import(find_dataset(901), "pool", 0)["samples"] == ["syn_000000", "syn_000001", "syn_000002"]
    with pytest.raises(InputError, match="there is: fold_0"):
        read_import(find_dataset(901), "pool", 1)
    (folder / "syn_000001_seg.b2nd").unlink()
    with pytest.raises(InputError, match="sample syn_000001 missing"):
        read_import(find_dataset(901), "pool", 0)


def test_cpu_plans(nnunet):
    base = nnunet / "preprocessed" / PLAIN
    big, small = (json.loads((base / f"nnUNetPlans{end}.json").read_text()) for end in ("", "CPU"))
    for name in ("2d", "3d_fullres"):
        features = small["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"]
        assert features[0] == 2 and max(features) <= 16
        assert len(features) == big["configurations"][name]["architecture"]["arch_kwargs"]["n_stages"]
        assert small["configurations"][name]["data_identifier"] == f"nnUNetPlans_{name}"
    assert small["configurations"]["2d"]["batch_size"] == 4
    with pytest.raises(InputError, match="other plans in"):
        write_cpu_plans(901, max_features=32)
    with pytest.raises(InputError, match="max_features = 4"):
        write_cpu_plans(901, plans_out="x", max_features=4)


def test_cpu_plans_make_configurations_that_inherit_as_small(nnunet):
    """What they say themselves is made as small as what they inherit."""
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    large = {"batch_size": 80, "architecture": configurations["3d_fullres"]["architecture"]}
    configurations |= {"large": {"inherits_from": "3d_fullres", **large}, "larger": {"inherits_from": "large"}}
    configurations["slices"] = {"inherits_from": "2d", "batch_size": 80}
    file.write_text(json.dumps(plans))
    small = json.loads(write_cpu_plans(901, plans_out="small").read_text())["configurations"]
    assert small["large"] == {**small["large"], "batch_size": 2, "architecture": small["3d_fullres"]["architecture"]}
    assert small["slices"]["batch_size"] == 16 and small["larger"] == {"inherits_from": "large"}
    configurations["large"]["architecture"] = {"arch_kwargs": {}}
    file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match="the configuration large .* no features_per_stage"):
        write_cpu_plans(901, plans_out="other")


def test_command_line(make_pool, nnunet, capsys, snapshot):
    pool = str(make_pool())
    before = snapshot()
    assert main(["add-pool", pool, "901", "2d", "0", "--shares", "0.25"]) == 2  # an unknown flag: nothing is done
    assert "did you mean --share?" in capsys.readouterr().err and snapshot() == before
    assert main(["add-pool", pool, "901", "2d", "7"]) == 1
    output = capsys.readouterr()
    assert "error: fold 7" in output.err and "Traceback" not in output.err and snapshot() == before
    assert main(["add-pool", pool, "901", "2d", "0", "--share", "0.25", "--training", "{'num_epochs': 3}"]) == 0
    assert "nnUNetv2_train Dataset901_Plain 2d_syn25 0 -p nnUNetPlansSynthAug" in capsys.readouterr().out
    assert main(["ext-path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert sorted(path.name for path in folder.glob("*.py")) == ["__init__.py", "nnUNetTrainerSynthAug.py"]
    assert folder == nnunet_plugin.ext_path()


@pytest.mark.slow
def test_exit_status_of_the_process():
    environment = {**os.environ, "PYTHONPATH": str(Path(nnunet_plugin.__file__).parents[1])}
    environment.pop("nnUNet_preprocessed", None)
    command = [sys.executable, "-m", "nnunet_plugin", "add-pool", "pool", "901", "2d", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: environment variable nnUNet_preprocessed = None")
