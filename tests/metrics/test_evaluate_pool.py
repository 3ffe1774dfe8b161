"""Whole evaluations of tiny pools whose figures are known: copies, noise, empty masks, volumes."""

import functools
import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from torchvision.models import alexnet

from scripts.data.cases import open_cases
from scripts.data.scaling import Scaling
from scripts.metrics.evaluate_pool import EvaluationSettings, _paired_figures, _Progress, evaluate_pool
from scripts.metrics.fidelity import psnr
from scripts.metrics.item_sets import ItemSet, open_pool, read_samples
from scripts.report.pool_metrics import write_pool_metrics
from scripts.runtime.errors import InputError
from tests.data import toy

SETTINGS = EvaluationSettings(neighbours=2, resamples=20, feature_steps=2)
SHAPE = (6, 36, 34)


@pytest.fixture(autouse=True)
def larger_toys(monkeypatch):
    monkeypatch.setattr(toy, "toy_case", functools.partial(toy.toy_case, shape=SHAPE))


def write_pool(folder, cases, items, dimension=2, **changes):
    """A pool of (image (channel, depth, height, width), label (depth, height, width)) in the space of the cases."""
    training = list(cases.training())
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    samples = []
    for index, (image, label) in enumerate(items):
        name = f"syn_{index:06d}"
        for channel, values in enumerate(image):
            nib.save(nib.Nifti1Image(values.T, np.eye(4)), folder / f"images/{name}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.uint8).T, np.eye(4)), folder / f"labels/{name}.nii.gz")
        samples.append({"id": name, "seed": index, "decision": "keep"})
    provenance = {
        "dataset": cases.description.name,
        "cases": [{"id": case.id, "sha256": case.identity.sha256} for case in training],
        "fold": cases.fold.name,
        "space": cases.space,
        "scaling": Scaling.fit(training, cases.space["kind"] == "raw", cases.masked).as_record(),
        "bundle": {"name": "toy", "version": "0"},
        "training": {"feature_extractor": "synthaug-segmentation-features(C=1,L=2,steps=200,seed=0)"},
    }
    content = {
        "format": "synthaug-pool",
        "format_version": 2,
        "dimension": dimension,
        "dataset": cases.description.as_record(),
        "space": cases.space,
        "provenance": provenance | changes.pop("provenance", {}),
        "sampling": {"seed": 0},
        "samples": samples,
    }
    (folder / "pool.json").write_text(json.dumps(content | changes))
    return folder


def slices_of(cases, ids):
    """The slices with foreground of some cases."""
    for case in map(cases.load, ids):
        for index in np.flatnonzero((case.label > 0).any(axis=(1, 2))):
            yield case.image[:, index : index + 1], case.label[index : index + 1]


def noisy(items, level):
    rng = np.random.default_rng(0)
    return [(x + level * rng.normal(size=x.shape).astype(np.float32), label) for x, label in items]


def values(record, comparison="synthetic vs training", pairing=None):
    return {
        (f["metric"], f["pairing"]): f["value"]
        for f in record["figures"]
        if f["comparison"] == comparison and pairing in (None, f["pairing"])
    }


@pytest.fixture
def data(tmp_path):
    return toy.write_preprocessed(tmp_path / "Dataset901_Toy", cases=12)


def run(pool, data, **more):
    return evaluate_pool(pool, data, settings=SETTINGS, progress=False, **more)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "regions", "masked", "channels"])
def test_a_pool_of_copies_has_the_best_figures(kind, tmp_path):
    variant = {"regions": {"regions": True}, "masked": {"masked": True}, "channels": {"channels": 2}}.get(kind, {})
    cases = open_cases(toy.write_preprocessed(tmp_path / "Dataset901_Toy", **variant))
    items = list(slices_of(cases, cases.fold.train))
    record = run(write_pool(tmp_path / "pool", cases, items), tmp_path / "Dataset901_Toy")
    found = values(record)
    assert found["psnr", "nearest-by-mse"] == 100
    assert found["ssim", "nearest-by-mse"] == pytest.approx(1, abs=1e-5)
    assert found["perceptual", "nearest-by-mse"] == pytest.approx(0, abs=1e-6)
    for name in ("fid", "jsd", "kld", "empty-masks", "wasserstein-volume", "wasserstein-centre_width"):
        assert found[name, "unpaired"] == pytest.approx(0, abs=1e-5)
    for name in ("precision", "recall", "coverage"):
        assert found[name, "unpaired"] == 1
    nearest = next(f for f in record["figures"] if f["metric"] == "psnr")
    assert nearest["identical_pairs"] == nearest["n"][0] == len(items)
    assert found["psnr", "random-pairs"] < 60
    unseen = values(record, "synthetic vs held-out")
    assert unseen["psnr", "nearest-by-mse"] < 60 and unseen["fid", "unpaired"] > 1e-4


@pytest.mark.slow
def test_held_out_cases_are_the_ceiling_and_never_training_cases(data, tmp_path):
    cases = open_cases(data)
    pool = write_pool(tmp_path / "pool", cases, slices_of(cases, cases.fold.val))
    record = run(pool, data)
    assert set(record["training_cases"]) == set(cases.fold.train)
    assert set(record["held_out_cases"]) == set(cases.fold.val)
    ceiling = values(record, "held-out vs training")
    perfect = values(record)
    assert ceiling == pytest.approx(perfect, rel=1e-5)  # a pool of unseen real slices reaches exactly the ceiling
    comparisons = {c["key"]: c["groups"] for c in record["comparisons"]}
    assert comparisons["held-out vs training"] == [len(cases.fold.val), len(cases.fold.train)]


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_only_a_pool_as_large_as_the_held_out_cases_is_held_against_them(missing, data, tmp_path):
    cases = open_cases(data)
    held_out = list(slices_of(cases, cases.fold.val))
    record = run(write_pool(tmp_path / "pool", cases, held_out[missing:]), data)
    assert ("synthetic (n of held-out) vs training" in {c["key"] for c in record["comparisons"]}) == (not missing)


@pytest.mark.slow
def test_training_cases_are_those_of_the_pool_whatever_the_split_says_now(data, tmp_path):
    cases = open_cases(data)
    pool = write_pool(tmp_path / "pool", cases, slices_of(cases, cases.fold.train[:3]))
    splits = json.loads((data / "splits_final.json").read_text())
    (data / "splits_final.json").write_text(json.dumps([splits[1], splits[0]]))
    record = run(pool, data)
    assert set(record["training_cases"]) == set(cases.fold.train)
    assert set(record["held_out_cases"]) == set(cases.fold.val)


@pytest.mark.slow
def test_noise_makes_every_image_figure_worse(data, tmp_path):
    cases = open_cases(data)
    items = list(slices_of(cases, cases.fold.train))
    found = [
        values(run(write_pool(tmp_path / str(level), cases, noisy(items, level)), data)) for level in (0.0, 0.2, 0.8)
    ]
    for name in ("psnr", "ssim"):
        assert np.all(np.diff([v[name, "nearest-by-mse"] for v in found]) < 0)
    assert np.all(np.diff([v["perceptual", "nearest-by-mse"] for v in found]) > 0)
    assert np.all(np.diff([v["fid", "unpaired"] for v in found]) > 0)
    assert np.all(np.diff([v["kid", "unpaired"] for v in found]) > 0)


@pytest.mark.slow
def test_order_of_the_samples_does_not_matter(data, tmp_path):
    cases = open_cases(data)
    items = noisy(slices_of(cases, cases.fold.train), 0.3)
    first = values(run(write_pool(tmp_path / "a", cases, items), data))
    second = values(run(write_pool(tmp_path / "b", cases, items[::-1]), data))
    for key, value in first.items():
        assert key[1] == "random-pairs" or second[key] == pytest.approx(value, rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_names_say_extractor_pairing_range_and_numbers(data, tmp_path):
    cases = open_cases(data)
    items = list(slices_of(cases, cases.fold.train))[:10]
    record = run(write_pool(tmp_path / "pool", cases, items), data)
    own = "synthaug-segmentation-features(C=1,L=2,steps=2,seed=7919)"
    names = [f["name"] for f in record["figures"] if f["comparison"] == "synthetic vs training"]
    real = 3 * len(cases.fold.train)
    assert f"fid[{own},unpaired,range=0..1,n=10/{real}]" in names
    assert f"recall[{own},unpaired,k=2,range=0..1,n=10/{real}]" in names
    assert f"psnr[pixels,nearest-by-mse,range=0..1,at-most-100,n=10/{real}]" in names
    assert f"ssim[pixels,random-pairs,range=0..1,n=10/{real}]" in names
    smoothed = "unpaired,per-pixel,KL(reference||candidates),smoothing=0.5,classes=0|1|2"
    assert f"kld[mask-slices,{smoothed},n=10/{real}]" in names
    assert len(names) == len(set(names))
    assert any("seed=0" in note and "may favour it" in note for note in record["notes"])  # the loss's own kind


@pytest.mark.slow
def test_intervals_need_patients_and_hold_the_figure(data, tmp_path):
    cases = open_cases(data)
    record = run(write_pool(tmp_path / "pool", cases, noisy(slices_of(cases, cases.fold.train), 0.3)), data)
    assert len(cases.fold.train) >= 5 > len(cases.fold.val)
    for figure in record["figures"]:
        if figure["comparison"] == "synthetic vs training":
            low, high = figure["interval"]
            assert low <= figure["value"] + 1e-9 and figure["value"] - 1e-9 <= high
        elif "held-out" in figure["comparison"].split(" vs ")[1]:
            assert figure["interval"] is None
    psnr = next(f for f in record["figures"] if f["metric"] == "psnr")
    assert psnr["interval"][0] < psnr["interval"][1]


@pytest.mark.slow
def test_fid_with_fewer_items_than_features_says_so(data, tmp_path, caplog):
    cases = open_cases(data)
    caplog.set_level(logging.WARNING, logger="scripts.metrics.evaluate_pool")
    record = run(write_pool(tmp_path / "pool", cases, slices_of(cases, cases.fold.train)), data)
    fid = next(f for f in record["figures"] if f["metric"] == "fid")
    assert "singular" in fid["warning"] and fid["features"] == 112 > min(fid["n"])
    assert any("singular" in message.getMessage() for message in caplog.records)


@pytest.mark.slow
def test_samples_that_the_audit_dropped_are_left_out_and_a_part_can_be_asked_for(data, tmp_path):
    cases = open_cases(data)
    items = list(slices_of(cases, cases.fold.train))
    pool = write_pool(tmp_path / "pool", cases, items)
    content = json.loads((pool / "pool.json").read_text())
    for sample in content["samples"][::2]:
        sample |= {"decision": "drop", "scores": {"audit": {}}}
    (pool / "pool.json").write_text(json.dumps(content))
    record = run(pool, data)
    assert record["pool"]["evaluated"] == len(items) // 2
    assert record["pool"]["dropped"] == len(items) - len(items) // 2 and record["pool"]["audited"]
    assert run(pool, data, num_samples=6)["figures"][0]["n"][0] == 6
    (pool / "pool.json").write_text(json.dumps({**content, "samples": content["samples"][::2]}))
    with pytest.raises(InputError, match="0 samples"):
        run(pool, data)


@pytest.mark.slow
def test_empty_masks_are_counted_and_leave_the_image_figures(data, tmp_path):
    cases = open_cases(data)
    items = list(slices_of(cases, cases.fold.train))
    half = [(image, label * (index % 2)) for index, (image, label) in enumerate(items)]
    some = run(write_pool(tmp_path / "half", cases, half), data)
    empty = next(f for f in some["figures"] if f["metric"] == "empty-masks")
    assert empty["value"] == pytest.approx(np.ceil(len(items) / 2) / len(items), abs=0.02)
    area = next(f for f in some["figures"] if f["metric"] == "wasserstein-volume")
    assert area["n"] == [len(items) // 2, len(items)]
    none = run(write_pool(tmp_path / "none", cases, [(image, label * 0) for image, label in items]), data)
    found = values(none)
    assert found["empty-masks", "unpaired"] == 1
    assert found["wasserstein-volume", "unpaired"] is None
    assert found["jsd", "unpaired"] > 0 and np.isfinite(found["kld", "unpaired"])
    assert found["psnr", "nearest-by-mse"] == 100
    assert "not defined" in write_pool_metrics(
        tmp_path / "none", data, tmp_path / "out", settings=SETTINGS, progress=False
    ).read_text()  # fmt: skip


@pytest.mark.slow
def test_without_held_out_cases_there_is_no_ceiling(data, tmp_path):
    cases = open_cases(data, fold="all")
    record = run(write_pool(tmp_path / "pool", cases, slices_of(cases, cases.fold.train)), data)
    assert [c["key"] for c in record["comparisons"]] == ["synthetic vs training"]
    assert any("no ceiling" in note for note in record["notes"])


@pytest.mark.slow
def test_volumes_are_compared_as_volumes_and_their_images_slice_by_slice(tmp_path):
    data = toy.write_raw(tmp_path / "Dataset902_ToyRaw", cases=8)
    cases = open_cases(data)
    items = [(case.image, case.label) for case in cases.training()]
    record = run(write_pool(tmp_path / "pool", cases, items, dimension=3), data)
    by_metric = {f["metric"]: f for f in record["figures"] if f["comparison"] == "synthetic vs training"}
    patients = len(cases.fold.train)
    assert by_metric["fid"]["n"] == [3 * patients] * 2 and by_metric["fid"]["groups"] == [patients] * 2
    assert by_metric["jsd"]["n"] == [patients] * 2 and by_metric["jsd"]["of"] == "mask-volumes"
    assert by_metric["jsd"]["value"] == by_metric["wasserstein-centre_depth"]["value"] == 0
    assert by_metric["wasserstein-volume"]["unit"] == "mm^3"
    # Twice as many slices show the same class probabilities once they are brought to one depth.
    deep = [(x.repeat(2, axis=1), label.repeat(2, axis=0)) for x, label in items]
    stretched = run(write_pool(tmp_path / "deep", cases, deep, dimension=3), data)
    by_metric = {f["metric"]: f for f in stretched["figures"] if f["comparison"] == "synthetic vs training"}
    assert by_metric["jsd"]["value"] == pytest.approx(0, abs=1e-12)
    assert by_metric["wasserstein-volume"]["value"] > 100  # yet they are larger
    # A volume without foreground has no slice to compare, and is an empty mask.
    empty = [(x, label * 0) for x, label in items]
    nothing = run(write_pool(tmp_path / "empty", cases, empty, dimension=3), data)
    metrics = {f["metric"] for f in nothing["figures"] if f["comparison"] == "synthetic vs training"}
    assert "psnr" not in metrics and "jsd" in metrics


@pytest.mark.slow
def test_what_nobody_annotated_is_left_out(tmp_path, monkeypatch):
    """Label 3 says ignore: in one slice of every case, and in every other case in all."""
    plain = toy.toy_case

    def with_ignored(index, channels=1):
        image, label = plain(index, channels)
        label[2 if index % 2 else slice(None), :2] = 3
        return image, label

    monkeypatch.setattr(toy, "toy_case", with_ignored)
    labels = {**toy.LABELS, "ignore": 3}
    data = toy.write_raw(tmp_path / "Dataset902_ToyRaw", cases=12, labels=labels)
    cases = open_cases(data)
    items = [(image, np.where(label == 3, 0, label)) for image, label in slices_of(cases, cases.fold.train)]
    record = run(write_pool(tmp_path / "pool", cases, items), data)
    annotated = sum(int(case_id[-1]) % 2 for case_id in cases.fold.train)
    fid = next(f for f in record["figures"] if f["metric"] == "fid")
    assert (fid["n"][1], fid["groups"][1]) == (2 * annotated, annotated)
    volumes = [(case.image, np.where(case.label == 3, 0, case.label)) for case in cases.training()]
    with pytest.raises(InputError, match="no foreground in the training cases"):
        run(write_pool(tmp_path / "volumes", cases, volumes, dimension=3), data)


def test_draws_of_random_pairs_follow_the_patients_as_well():
    """Black samples, and patients of one grey each: a draw of one patient alone has that patient's PSNR."""

    def grey(name, levels, each):
        images = torch.tensor(levels).repeat_interleave(each)[:, None, None, None].expand(-1, 1, 12, 12)
        groups = np.repeat(np.arange(len(levels)), each)
        labels = np.zeros((len(groups), 12, 12), np.uint8)
        return ItemSet(name, [str(i) for i in levels], images, labels, groups, labels, groups, {})

    samples, patients = grey("synthetic", [0.0] * 40, 1), grey("training", [0.1, 0.2, 0.4], 4)
    weights = np.array([[1.0, 1, 1], [0, 3, 0], [0, 0, 3]])[:, patients.slice_groups]
    found = {}
    list(
        _paired_figures(
            samples, patients, np.ones((3, 40)), weights, {"psnr": psnr}, SETTINGS, _Progress(False),
            lambda metric, draws, of, pairing, n, **_: found.update({pairing: draws}), (40, 12),
        )
    )  # fmt: skip
    np.testing.assert_allclose(found["nearest-by-mse"], -20 * np.log10([0.1, 0.2, 0.4]), rtol=1e-5)
    np.testing.assert_allclose(found["random-pairs"][1:], -20 * np.log10([0.2, 0.4]), rtol=1e-5)
    assert found["random-pairs"][1] < found["random-pairs"][0] < 20


@pytest.mark.slow
def test_local_weights_add_their_figures(data, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = alexnet(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "alexnet.pth")
    cases = open_cases(data)
    pool = write_pool(tmp_path / "pool", cases, list(slices_of(cases, cases.fold.train))[:8])
    record = run(pool, data, weights_alexnet=tmp_path / "alexnet.pth")
    assert [name.split("(")[0] for name in record["extractors"]] == ["synthaug-segmentation-features", "alexnet"]
    names = [f["name"] for f in record["figures"]]
    assert any(name.startswith("lpips[lpips-0.1-alexnet(") and "nearest-by-mse" in name for name in names)
    assert any(name.startswith("fid[alexnet(") for name in names)
    with pytest.raises(InputError, match="no such file"):
        run(pool, data, weights_inception=tmp_path / "absent.pth")


@pytest.mark.slow
def test_files_are_written_whole_and_the_same_twice(data, tmp_path):
    cases = open_cases(data)
    pool = write_pool(tmp_path / "pool", cases, noisy(slices_of(cases, cases.fold.train), 0.3))
    table = write_pool_metrics(pool, data, settings=SETTINGS, progress=False)
    write_pool_metrics(pool, data, tmp_path / "again", settings=SETTINGS, progress=False)
    assert table == pool / "metrics.md"
    for name in ("metrics.json", "metrics.md", "metrics.png"):
        assert (pool / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    record = json.loads((pool / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    text = table.read_text()
    for figure in record["figures"]:
        assert figure["metric"] + "\\[" in text or figure["metric"] + "[" in text
        assert f"{figure['value']:.3g}" in text
    for comparison in record["comparisons"]:
        assert comparison["key"] in text


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(data, tmp_path):
    cases = open_cases(data)
    items = list(slices_of(cases, cases.fold.train))
    other = write_pool(tmp_path / "space", cases, items, space={**cases.space, "sha256": "other"})
    with pytest.raises(InputError, match="another space"):
        run(other, data)
    unknown = [{"id": "toy_900", "sha256": "0" * 64}]
    with pytest.raises(InputError, match="lacks 1 cases .*toy_900"):
        run(write_pool(tmp_path / "unknown", cases, items, provenance={"cases": unknown}), data)
    changed = [{"id": case_id, "sha256": "0" * 64} for case_id in cases.fold.train]
    with pytest.raises(InputError, match="has changed"):
        run(write_pool(tmp_path / "changed", cases, items, provenance={"cases": changed}), data)
    with pytest.raises(InputError, match="first sample"):
        run(write_pool(tmp_path / "shape", cases, [*items, (items[0][0][..., :-1], items[0][1][..., :-1])]), data)
    with pytest.raises(InputError, match="at least 11"):
        run(write_pool(tmp_path / "small", cases, [(x[..., :9], y[..., :9]) for x, y in items]), data)
    pool = write_pool(tmp_path / "pool", cases, items)
    for changes in ({"neighbours": 0}, {"resamples": 1}, {"level": 1.0}):
        with pytest.raises(InputError, match="neighbours"):
            evaluate_pool(pool, data, settings=EvaluationSettings(**changes), progress=False)


@pytest.mark.parametrize("real_anatomy", [True, False])
def test_painted_samples_are_of_the_size_of_their_patients(tmp_path, real_anatomy):
    cases = open_cases(toy.write_preprocessed(tmp_path / "Dataset901_Toy"))
    items = list(slices_of(cases, cases.fold.train))[:6]
    items = [(image[..., : 34 - 2 * (i % 2)], label[..., : 34 - 2 * (i % 2)]) for i, (image, label) in enumerate(items)]
    pool = open_pool(
        write_pool(tmp_path / "pool", cases, items, real_anatomy=real_anatomy), tmp_path / "Dataset901_Toy"
    )
    if real_anatomy:
        read = read_samples(pool, lambda names, _: names)
        assert len(read.ids) == 6 and pool.shape == (1, 36, 34)
    else:
        with pytest.raises(InputError, match="as the first sample"):
            read_samples(pool, lambda names, _: names)
