"""Leaks that names do not show: cases and samples are compared by their voxels, wherever a pool is used."""

import base64
import hashlib
import json
import os
import shutil
from itertools import product
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_plugin.errors import InputError
from nnunet_plugin.identity import Identity, find_twins, identify, image_distance, label_agreement, same_case
from nnunet_plugin.import_pool import add_pool, read_import
from nnunet_plugin.leakage import cases_sha256, check_held_out
from nnunet_plugin.pool_format import hash_pool, read_pool
from nnunet_plugin.preprocessed import find_dataset
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .conftest import PLAIN, REGIONS, rehash, training_cases

TINY = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "seed": 0}


def patient(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two channels of smooth noise `(2, 9, 40, 38)` and a tumour."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    image = np.stack([gaussian_filter(rng.standard_normal((9, 40, 38)), 2) for _ in range(2)]).astype(np.float32)
    label = np.zeros(image.shape[1:], np.int16)
    z, y, x = rng.integers(1, 5), *rng.integers(4, 25, 2)
    label[z : z + 3, y : y + 9, x : x + 9] = 1
    return image, label


def is_twin(one: Identity, other: Identity) -> bool:
    return bool(find_twins([one], [other]))


def test_identity_survives_other_bits_and_tells_patients_apart():
    """The law: rounding, resampling, brightness and contrast leave a case the same; no other case is."""
    (image, label), known = patient(0), identify(*patient(0))
    rng = np.random.default_rng(1)
    for changed in (
        image.astype(np.float16).astype(np.float32),
        image + 0.01 * image.std() * rng.standard_normal(image.shape),
        3e4 * image - 7,
        1e-12 * image,
    ):
        other = identify(changed, np.where(label == 0, -1, label))
        assert other.sha256 != known.sha256 and same_case(known, other) and is_twin(known, other)
    assert identify(image, label) == known == identify(image, np.where(label == 0, -1, label).astype(np.int8))
    for changed in (image[:, ::-1], image[:, :, ::-1], image[::-1], image[:1], -image, 0 * image, *[
        patient(seed)[0] for seed in range(1, 20)
    ]):  # fmt: skip
        assert not same_case(known, identify(changed, label))
    assert not same_case(known, identify(image, patient(2)[1]))  # another's annotation
    assert is_twin(known, identify(image, patient(2)[1]))
    for changed in (image[..., ::-1], image[:, ::-1, ::-1], image.swapaxes(2, 3)[..., ::-1], -image):
        assert is_twin(known, identify(changed, label)), "under another name, one image however it is turned"
    for seed in range(1, 20):
        assert not is_twin(known, identify(*patient(seed)))
    assert not same_case(Identity("0", None), Identity("1", known.fingerprint))
    assert identify(0 * image, label).is_readable() and not Identity("0", "no base64!").is_readable()
    assert label_agreement(identify(image, 0 * label).fingerprint, identify(image, 0 * label).fingerprint) == 1


def test_twins_are_found_among_all_pairs():
    """Many against many as each against each in all its ways; also by hash, and where channels differ."""
    rng = np.random.default_rng(0)
    label = np.zeros((8, 24, 24), np.int16)
    images = [rng.standard_normal((2, *label.shape)).astype(np.float32) for _ in range(6)]
    ways = [way[:, ::z, ::y, ::x] for image in images for way in (image, image.swapaxes(2, 3))
            for z, y, x in product((1, -1), repeat=3)]  # fmt: skip
    changed = [
        scale * image + near * rng.standard_normal(image.shape)
        for image, scale, near in zip(images, (1, -1, 3, 1, -1, 1), (0, 0.01, 0.05, 0.15, 0.25, 9), strict=True)
    ]
    turned = [image[:, ::-1].swapaxes(2, 3)[..., ::-1] for image in changed]
    other = [images[0][:1], np.concatenate([images[0], images[1]]), np.concatenate([images[0][:1], images[1][:1]])]
    these = [identify(image, label) for image in [*images, *other]]
    those = [identify(image, label) for image in [*changed, *turned, images[0][:1, :, ::-1]]]
    these, those = [*these, Identity("hash", None)], [Identity("hash", None), *those]
    known = {i: [identify(way, label) for way in ways[16 * i : 16 * i + 16]] for i in range(len(images))}
    expected = {(9, 0), (6, len(those) - 1)} | {
        (i, j)
        for i, of in known.items() for j, that in enumerate(those[1:], 1)
        if min(image_distance(way.fingerprint, text) for way in of for text in both_signs(that)) <= 0.05
    }  # fmt: skip
    found = find_twins(these, those)
    assert set(found) == expected and found == sorted(found) and 8 <= len(found) <= 12
    assert {(j, i) for i, j in found} == set(find_twins(those, these))


def both_signs(identity: Identity) -> list[str]:
    steps = np.frombuffer(base64.b64decode(identity.fingerprint), np.int8).reshape(-1, 576)
    inverse = np.concatenate([-steps[:-1], steps[-1:]])
    return [identity.fingerprint, base64.b64encode(inverse.tobytes()).decode()]


def test_blank_images_are_nobodys_copies():
    """Tiles without tissue in training and validation are no leak, whatever their value and label."""
    (image, label), rng = patient(0), np.random.default_rng(0)
    blank = [np.full_like(image, value) for value in (0, 3, 1e7)] + [np.stack([0 * image[0], 3 + 0 * image[1]])]
    identities = [identify(one, annotated) for one in blank for annotated in (label, 0 * label)]
    assert not any(is_twin(first, second) for first in identities for second in identities)
    check_held_out({"train": identities[0]}, {"val": identities[0]}, 0, "the network")
    half = np.stack([0 * image[0], image[1]])  # one modality is missing: the other one tells
    noise = (100 + rng.standard_normal(image.shape)).astype(np.float32)
    for shown in (half, noise):
        assert is_twin(identify(shown, label), identify(shown[:, :, ::-1], 0 * label))
        assert not is_twin(identify(shown, label), identities[0])


def with_fingerprints(pool: Path, base: Path, identifier: str = "nnUNetPlans_2d") -> Path:
    """Make a pool's provenance what generators record today: fingerprints, a hash of the list, validation ids."""

    def edit(provenance):
        for case in provenance["cases"]:
            image, seg = arrays(base / identifier, case["id"])
            case["fingerprint"] = identify(image, seg[0]).fingerprint
        provenance["cases_sha256"] = cases_sha256(provenance["cases"])
        names = {f"case_{case}" for case in range(6)}
        provenance["validation"] = sorted(names - {case["id"] for case in provenance["cases"]})

    return edit_provenance(pool, edit)


def edit_provenance(pool: Path, edit) -> Path:
    content = json.loads((pool / "pool.json").read_text())
    edit(content["provenance"])
    (pool / "pool.json").write_text(json.dumps(content))
    return pool


def arrays(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    image, seg = (blosc2.open(str(folder / f"{case}{end}.b2nd"))[:] for end in ("", "_seg"))
    return image, seg


def write(folder: Path, case: str, image: np.ndarray) -> None:
    (folder / f"{case}.b2nd").unlink()
    blosc2.asarray(np.ascontiguousarray(image), urlpath=str(folder / f"{case}.b2nd"))


def exchange(folder: Path, one: str, other: str) -> None:
    """Give two cases each other's names."""
    for end in (".b2nd", "_seg.b2nd", ".pkl"):
        (folder / f"{one}{end}").rename(folder / "aside")
        (folder / f"{other}{end}").rename(folder / f"{one}{end}")
        (folder / "aside").rename(folder / f"{other}{end}")


def copy(folder: Path, one: str, to: str) -> None:
    for end in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(folder / f"{one}{end}", folder / f"{to}{end}")


def renumber(folder: Path, names: list[str]) -> None:
    for name, following in zip(names, names[1:], strict=False):
        exchange(folder, name, following)


def other_bits(folder: Path, names: list[str]) -> None:
    for name in names:
        image, _ = arrays(folder, name)
        write(folder, name, image * np.float32(1.0001) + np.float32(1e-4))


def datasets(trainer):
    """Open the data as the start of a training does."""
    trainer._set_batch_size_and_oversample()
    return trainer.get_tr_and_val_datasets()


# What befalls the preprocessed cases; t: training cases, v: validation cases of fold 0.
LEAKS = {
    "exchanged": lambda folder, t, v: exchange(folder, t[0], v[0]),
    "renumbered": lambda folder, t, v: renumber(folder, sorted([*t, *v])),
    "replaced": lambda folder, t, v: write(folder, t[1], arrays(folder, v[0])[0]),
    "only turned": lambda folder, t, v: write(folder, t[1], arrays(folder, t[1])[0][:, :, ::-1]),
    "copied into validation": lambda folder, t, v: copy(folder, t[0], v[0]),
}


def folds(base: Path) -> tuple[Path, list[str], list[str]]:
    train = training_cases(base)
    return base / "nnUNetPlans_2d", train, sorted({f"case_{case}" for case in range(6)} - {*train})


@pytest.mark.parametrize("recorded", ["hashes", "fingerprints"])
@pytest.mark.parametrize("leak", LEAKS)
def test_changed_cases_are_refused_before_and_after_add_pool(make_pool, make_trainer, nnunet, snapshot, leak, recorded):
    folder, train, val = folds(nnunet / "preprocessed" / PLAIN)
    pool = make_pool(samples=2)
    if recorded == "fingerprints":
        with_fingerprints(pool, folder.parent)
    add_pool(pool, 901, 0, pool_name="before")
    LEAKS[leak](folder, train, val)
    named = "a leak" if leak.startswith("copied") else "not those that the generator was trained on"
    state = snapshot()
    with pytest.raises(InputError, match=named):
        add_pool(pool, 901, 0, pool_name="after", name="after")
    assert snapshot() == state
    with pytest.raises(InputError, match=named):
        datasets(make_trainer("2d_syn50", plans="nnUNetPlansSynthAug"))


@pytest.mark.parametrize("recorded", ["hashes", "fingerprints"])
@pytest.mark.parametrize("which", ["training", "both"])
def test_volumes_exchanged_after_add_pool_are_refused(make_pool, make_trainer, nnunet, which, recorded):
    base = nnunet / "preprocessed" / PLAIN
    _, train, val = folds(base)
    pool = make_pool(samples=2, configuration="3d_fullres")
    if recorded == "fingerprints":
        with_fingerprints(pool, base, "nnUNetPlans_3d_fullres")
    add_pool(pool, 901, 0, configuration="3d_fullres")
    exchange(base / "nnUNetPlans_3d_fullres", train[0], train[1] if which == "training" else val[0])
    with pytest.raises(InputError, match="not those that the generator was trained on"):
        datasets(make_trainer("3d_fullres_syn50", plans="nnUNetPlansSynthAug"))


def test_cases_with_other_bits_are_taken(make_pool, make_trainer, nnunet):
    """Preprocessed again, by another nnU-Net: other hashes, the same images; also new names of the split's order."""
    folder, train, val = folds(nnunet / "preprocessed" / PLAIN)
    pool = with_fingerprints(make_pool(samples=2), folder.parent)
    old = make_pool("old", samples=2)
    add_pool(old, 901, 0)
    other_bits(folder, [*train, *val])
    datasets(make_trainer("2d_syn50", plans="nnUNetPlansSynthAug"))
    add_pool(pool, 901, 0, share=0.25)
    datasets(make_trainer("2d_syn25", plans="nnUNetPlansSynthAug"))
    with pytest.raises(InputError, match="not those that the generator"):  # a hash alone knows no tolerance
        add_pool(old, 901, 0, share=0.75)


def test_voxels_are_read_again_only_where_files_changed(make_pool, make_trainer, nnunet, monkeypatch):
    """At every start after the first; a leak that came between two starts is found as at the first one."""
    folder, train, val = folds(nnunet / "preprocessed" / PLAIN)
    add_pool(make_pool(samples=2), 901, 0)
    reads = []

    def identify_and_count(image, label):
        reads.append(identify(image, label))
        return reads[-1]

    monkeypatch.setattr("nnunet_plugin.leakage.identify", identify_and_count)

    def start() -> int:
        reads.clear()
        datasets(make_trainer("2d_syn50", plans="nnUNetPlansSynthAug"))
        return len(reads)

    kept = folder.parent / f"synthaug/identities_{folder.name}.json"
    assert (start(), start()) == (6, 0)
    whole = kept.read_text()
    write(folder, train[0], arrays(folder, train[0])[0])
    assert (start(), start()) == (1, 0)
    for damage in ("[" * 200_000, "{}", whole.replace('"files"', '"file"'), whole.replace("synthaug-id", "other")):
        kept.write_text(damage)
        assert (start(), start()) == (6, 0)
    exchange(folder, train[0], train[1])
    with pytest.raises(InputError, match="not those that the generator was trained on"):
        start()
    assert len(reads) == 2
    exchange(folder, train[0], train[1])
    copy(folder, train[0], val[0])
    with pytest.raises(InputError, match="a leak"):
        start()
    assert not list(kept.parent.glob("*.partial"))


def hide(provenance):
    del provenance["cases"][0]


def forge(provenance):
    provenance["cases"][0]["sha256"] = "0" * 64


def other_fold(provenance):
    provenance["fold"] = 1
    provenance["split_sha256"] = hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize("recorded", ["hashes", "fingerprints"])
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (hide, "not the training cases of its own fold 0|was changed"),
        (other_fold, "not the training cases of its own fold 1"),
        (lambda provenance: provenance.update(fold=1), "its own fold 1"),
        (lambda provenance: provenance.update(fold="0"), "its own fold 0"),
        (lambda provenance: provenance.update(fold=True), "its own fold True"),
        (lambda provenance: provenance.pop("split_sha256"), "its own fold 0"),
        (forge, "not those that the generator|was changed"),
        (lambda provenance: provenance["cases"][1].pop("sha256"), "without the hash of case_"),
        (lambda provenance: provenance["cases"][1].update(sha256=None), "without the hash of case_"),
        (lambda provenance: provenance["cases"][1].update(sha256="ABC"), "without the hash of case_"),
        (lambda provenance: provenance["cases"].append(provenance["cases"][0]), "a case twice"),
        (lambda provenance: provenance["cases"].reverse(), "its own fold 0|was changed"),
    ],
)
def test_provenance_that_contradicts_itself_is_refused(make_pool, nnunet, snapshot, edit, named, recorded):
    pool = make_pool(samples=2)
    if recorded == "fingerprints":
        with_fingerprints(pool, nnunet / "preprocessed" / PLAIN)
    edit_provenance(pool, edit)
    state = snapshot()
    with pytest.raises(InputError, match=named):
        add_pool(pool, 901, 0)
    assert snapshot() == state


def test_split_that_was_made_anew_is_no_contradiction(make_pool, nnunet):
    """A record of today knows its own validation cases, so only the leak counts."""
    base = nnunet / "preprocessed" / PLAIN
    pool, (_, train, val) = with_fingerprints(make_pool(samples=2), base), folds(base)
    (base / "splits_final.json").write_text(json.dumps([{"train": [*train, val[0]], "val": val[1:]}]))
    assert add_pool(pool, 901, 0)["imported"]


@pytest.mark.parametrize("part", ["images/syn_000001_0000.nii.gz", "labels/syn_000001.nii.gz"])
def test_sample_that_was_replaced_is_refused(make_pool, snapshot, part):
    pool = make_pool(samples=3)
    image = sitk.ReadImage(str(pool / part))
    sitk.WriteImage(image[::-1], str(pool / part))
    state = snapshot()
    with pytest.raises(InputError, match="sample syn_000001, whose files are not those"):
        add_pool(pool, 901, 0)
    assert snapshot() == state


@pytest.mark.parametrize("end", [".b2nd", "_seg.b2nd", ".pkl"])
def test_imported_sample_that_was_replaced_is_refused_and_mended_by_add_pool(make_pool, make_trainer, end):
    pool = make_pool(samples=3)
    folder = add_pool(pool, 901, 0)["pool_folder"]
    good = (folder / f"syn_000001{end}").read_bytes()
    (folder / f"syn_000001{end}").write_bytes((folder / f"syn_000002{end}").read_bytes() + b" ")
    trainer = make_trainer("2d_syn50", plans="nnUNetPlansSynthAug")
    with pytest.raises(InputError, match="sample syn_000001 in .* run add-pool|sample syn_000001 in"):
        datasets(trainer)
    assert add_pool(pool, 901, 0)["imported"]
    assert len((folder / f"syn_000001{end}").read_bytes()) == len(good)
    datasets(trainer)


def test_pool_of_format_1_is_taken_after_it_is_hashed(make_pool):
    pool = make_pool(samples=3, dropped=1)
    content = json.loads((pool / "pool.json").read_text())
    old = {**content, "format_version": 1}
    for sample in old["samples"]:
        sample.pop("sha256")
    (pool / "pool.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="synthaug hash-pool"):
        add_pool(pool, 901, 0)
    assert hash_pool(pool) == pool
    rehash(pool)  # the tests' own hashes
    assert read_pool(pool).content == json.loads((pool / "pool.json").read_text())
    shutil.copy(pool / "images/syn_000002_0000.nii.gz", pool / "images/syn_000001_0000.nii.gz")
    hash_pool(pool)  # once hashed, a pool is not hashed again
    with pytest.raises(InputError, match="whose files are not those"):
        add_pool(pool, 901, 0)


def test_pool_of_format_1_whose_regions_were_painted_wrongly(make_pool):
    """Format 1 painted each region with its number of regions_class_order, nnU-Net reads numbers by `labels`."""
    for order, wrong in (([1, 2], False), ([2, 1], True)):
        pool = make_pool(f"pool_{wrong}", REGIONS, samples=1)
        content = json.loads((pool / "pool.json").read_text())
        content["dataset"]["regions_class_order"], content["format_version"] = order, 1
        (pool / "pool.json").write_text(json.dumps(content))
        if wrong:
            with pytest.raises(InputError, match="painted as"):
                hash_pool(pool)
        else:
            hash_pool(pool)


@pytest.mark.slow
def test_raw_cases_are_compared_too(make_pool, nnunet, monkeypatch):
    """A pool of raw volumes: the raw files are those that were seen, and the preprocessed cases are made of them."""
    raw = nnunet / "raw"
    shutil.copytree(Path(os.environ["nnUNet_raw"]) / PLAIN, raw / PLAIN)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    folder, train, val = folds(nnunet / "preprocessed" / PLAIN)
    pool = make_pool("raw_pool", configuration="3d_fullres", samples=1, kind="raw")
    assert add_pool(pool, 901, 0, "3d_fullres")["imported"]
    exchange(folder, train[0], val[0])
    with pytest.raises(InputError, match=f"{train[0]} \\(now under {val[0]}\\)"):
        add_pool(pool, 901, 0, "2d", pool_name="second")
    exchange(folder, train[0], val[0])
    turned = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / PLAIN / "imagesTr" / f"{train[0]}_0000.nii.gz")))[::-1]
    sitk.WriteImage(sitk.GetImageFromArray(turned), str(raw / PLAIN / "imagesTr" / f"{train[0]}_0000.nii.gz"))
    with pytest.raises(InputError, match=f"raw case {train[0]}"):
        add_pool(pool, 901, 0, "2d", pool_name="second")
    shutil.rmtree(raw / PLAIN)
    with pytest.raises(InputError, match="raw data set"):
        add_pool(pool, 901, 0, "2d", pool_name="second")


def train_and_start(make_pool, make_trainer, first_fold, second_fold, kind=None):
    """Train fold `first_fold`, then start `second_fold` from its weights; return the second trainer."""
    for fold in {first_fold, second_fold} - {"all"}:
        add_pool(make_pool(f"pool_fold{fold}", fold=fold, samples=2), 901, fold, plans="nnUNetPlansCPU", training=TINY)
    plans = "nnUNetPlansCPUSynthAug" if kind is None else "nnUNetPlansCPU"
    first = make_trainer("2d_syn50" if kind is None else "2d", first_fold, plans=plans, kind=kind)
    if kind is not None:
        first.num_epochs = first.num_iterations_per_epoch = first.num_val_iterations_per_epoch = 1
    first.run_training()
    second = make_trainer("2d_syn50", second_fold)
    file = Path(first.output_folder) / "checkpoint_final.pth"
    return second, file


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, nnUNetTrainer], ids=["ours", "stock"])
def test_pretrained_weights_that_saw_validation_cases_are_refused(make_pool, make_trainer, nnunet, kind):
    second, file = train_and_start(make_pool, make_trainer, 0, 1, kind)
    maybe_load_checkpoint(second, False, False, pretrained_weights_file=str(file))
    with pytest.raises(InputError, match="a leak: the network of .* validation cases of fold 1"):
        datasets(second)
    same = make_trainer("2d_syn50", 0)
    maybe_load_checkpoint(same, False, False, pretrained_weights_file=str(file))
    datasets(same)
    log = Path(same.log_file).read_text()
    assert ("WARNING: pretrained weights" in log) == (kind is not None)
    elsewhere = nnunet / "weights.pth"  # without the folder that says what they have seen
    torch.save({"network_weights": torch.load(file, weights_only=False)["network_weights"]}, elsewhere)
    third = make_trainer("2d_syn50", 1)
    maybe_load_checkpoint(third, False, False, pretrained_weights_file=str(elsewhere))
    datasets(third)
    assert "which cases they have seen is not recorded" in Path(third.log_file).read_text()


def without_a_case(record):
    del record["seen"][sorted(record["seen"])[0]]


def without_a_case_in_the_provenance(record):
    record["provenance"]["cases"].pop()


def without_a_sample(record):
    del record["samples"][sorted(record["samples"])[0]]


def with_another_hash(record):
    record["samples"][sorted(record["samples"])[0]][1] = "0" * 64


@pytest.mark.parametrize(
    "edit", [without_a_case, without_a_case_in_the_provenance, without_a_sample, with_another_hash]
)
def test_an_edited_import_is_no_pool_to_train_with(make_pool, nnunet, edit):
    result = add_pool(make_pool(samples=3), 901, 0)
    path = result["pool_folder"] / "import.json"
    before, record = path.read_text(), json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="import.json"):
        read_import(find_dataset(901), "pool", 0)
    if edit is not without_a_case_in_the_provenance:  # which is another pool's, as far as can be seen
        assert add_pool(nnunet / "pool", 901, 0)["imported"]  # as its remedy says
        again = json.loads(path.read_text())
        assert all(again[key] == json.loads(before)[key] for key in ("samples", "seen"))


def test_samples_that_left_an_import_with_their_files_come_back(make_pool, nnunet):
    pool = make_pool(samples=3)
    folder = add_pool(pool, 901, 0)["pool_folder"]
    record = json.loads((folder / "import.json").read_text())
    name = sorted(record["samples"])[0]
    without_a_sample(record)
    (folder / "import.json").write_text(json.dumps(record))
    for path in folder.glob(f"{name}*"):
        path.unlink()
    assert add_pool(pool, 901, 0)["imported"] and read_import(find_dataset(901), "pool", 0)["samples"][0] == name


def test_what_an_audit_dropped_comes_back_with_a_reason_alone(make_pool, nnunet):
    def flipped(pool, reason="audit: duplicate of syn_000001"):
        pool["samples"][0] |= {"decision": "keep", "reason": reason}

    with pytest.raises(InputError, match="syn_000000, to be kept, with the reason for which an audit dropped it"):
        add_pool(make_pool(samples=3, edit=flipped), 901, 0)
    own = make_pool("own", samples=3, edit=lambda pool: flipped(pool, "a rare case, says the radiologist"))
    assert add_pool(own, 901, 0)["samples"] == 3
