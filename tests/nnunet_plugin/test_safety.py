"""Nothing is lost: options of another type, folders of others, two commands at once, damaged imports, hostile files."""

import errno
import gzip
import json
import os
import shlex
import shutil
import struct
import tracemalloc
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_plugin.__main__ import main, run_commands
from nnunet_plugin.cpu_plans import write_cpu_plans
from nnunet_plugin.errors import InputError, plain_words
from nnunet_plugin.export import EXPORT_RECORD, export_model
from nnunet_plugin.import_pool import add_pool
from nnunet_plugin.preprocessed import find_dataset
from nnunet_plugin.seen import check_pretrained

from ..processes import files_of_at_most, start
from .conftest import PLAIN, rehash, tree_hash


def show(
    folder: str,
    dataset: int | str = 1,
    output: str | Path | None = None,
    overwrite: bool = False,
    count: int = 3,
    share: float = 0.5,
    sizes: list | None = None,
) -> str:
    """Show what arrives."""
    return repr((folder, dataset, output, overwrite, count, share, sizes))


@pytest.mark.parametrize(
    ("words", "arrives"),
    [
        (["1e5"], ("1e5", 1, None, False, 3, 0.5, None)),
        (["2024", "007"], ("2024", 7, None, False, 3, 0.5, None)),
        (["0x10", "Dataset066_MR-liver", "1.0"], ("0x10", "Dataset066_MR-liver", "1.0", False, 3, 0.5, None)),
        (["[a]", "1e5", "{b: c}", "--overwrite"], ("[a]", "1e5", "{b: c}", True, 3, 0.5, None)),
        (["~", "--count", "1_000"], (os.path.expanduser("~"), 1, None, False, 1000, 0.5, None)),
        (["True", "--overwrite=False", "--share=1"], ("True", 1, None, False, 3, 1, None)),
        (["a", "--overwrite", "false", "--sizes", "[1,2]"], ("a", 1, None, False, 3, 0.5, [1, 2])),
    ],
)
def test_options_arrive_as_their_annotations_say(capsys, words, arrives):
    assert run_commands({"show": show}, "test", argv=["show", *words]) == 0
    assert capsys.readouterr().out.strip() == repr(arrives)


@pytest.mark.parametrize(
    "words",
    [
        ["--overwrite", "0"],
        ["--overwrite", "no"],
        ["--overwrite=None"],
        ["--count", "abc"],
        ["--count", "2.5"],
        ["--count", "True"],
        ["--share", "half"],
        ["--share", "nan"],
        ["--share", "1e999"],
        ["--share=-0.5"],
        ["--count", "1e3"],
        ["--count", "-1"],
    ],
)
def test_options_of_another_type_are_refused(capsys, words):
    assert run_commands({"show": show}, "test", argv=["show", "a", *words]) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"error: {words[0].partition('=')[0]}") and not output.out


def trained(folder: Path, trainer: str = "nnUNetTrainerSynthAug") -> Path:
    """A trained model as far as export-model reads one."""
    for name in ("plans", "dataset", "dataset_fingerprint"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text("{}")
    (folder / "fold_0").mkdir()
    checkpoint = {"trainer_name": trainer, "network_weights": {"a": torch.zeros(2)}}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_exported_nor_trained_on(value, tmp_path):
    model = trained(tmp_path / "nnUNetTrainerSynthAug__p__2d")
    file = model / "fold_0/checkpoint_final.pth"
    content = {**torch.load(file), "network_weights": {"a": torch.tensor([0.0, value])}}
    torch.save(content, file)
    before = tree_hash(tmp_path)
    with pytest.raises(InputError, match="checkpoint_final.pth with values in a that are not finite"):
        export_model(model)
    with pytest.raises(InputError, match="not finite"):
        check_pretrained(file, None, {}, 0)
    assert tree_hash(tmp_path) == before


def test_export_replaces_nothing_but_exports(tmp_path):
    """Whatever the flags: a folder of the user's, the model, what is around it and in it stay as they are."""
    model = trained(tmp_path / "results" / "nnUNetTrainerSynthAug__p__2d")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    before = tree_hash(tmp_path)
    for output in (tmp_path / "mine", tmp_path / "linked", tmp_path / "file", tmp_path / "empty", model, model.parent,
                   tmp_path, model / "inside", model / "fold_0", Path("/")):  # fmt: skip
        for overwrite in (True, False):
            if output == model / "inside" or output.exists():
                with pytest.raises(InputError):
                    export_model(model, output, overwrite=overwrite)
    for wrong in ("false", "true", 1, None):
        with pytest.raises(InputError, match="True or False"):
            export_model(model, tmp_path / "mine", overwrite=wrong)
    assert tree_hash(tmp_path) == before and (tmp_path / "mine.partial").is_dir()

    exported = export_model(model, tmp_path / "exported")
    whole = tree_hash(exported)
    assert tree_hash(export_model(model, exported, overwrite=True)) == whole
    for change in (
        lambda: (exported / "notes.txt").write_text("mine"),
        lambda: (exported / "fold_0" / "checkpoint_final.pth").write_bytes(b"trained on"),
        lambda: (exported / "link").symlink_to(tmp_path / "mine"),
        lambda: (exported / EXPORT_RECORD).unlink(),
        lambda: (exported / EXPORT_RECORD).write_text("[" * 200_000),
    ):
        change()
        changed = tree_hash(exported)
        with pytest.raises(InputError):
            export_model(model, exported, overwrite=True)
        assert tree_hash(exported) == changed
        shutil.rmtree(exported)
        export_model(model, exported)
    assert not list(tmp_path.rglob("*.partial/*"))


def test_plans_of_others_are_never_replaced(make_pool, nnunet, snapshot):
    base = nnunet / "preprocessed" / PLAIN
    shutil.copy(base / "nnUNetPlans.json", base / "mine.json")
    pool, before = make_pool(samples=2), snapshot()
    for name in ("mine", "dataset", "dataset_fingerprint", "nnUNetPlansCPU"):
        with pytest.raises(InputError):
            add_pool(pool, 901, 0, plans_out=name, overwrite=True)
        if name != "nnUNetPlansCPU":
            with pytest.raises(InputError):
                write_cpu_plans(901, plans_out=name, overwrite=True)
    assert snapshot() == before
    write_cpu_plans(901, plans_out="nnUNetPlansCPU", max_features=32, overwrite=True)
    mixed = add_pool(pool, 901, 0, plans="nnUNetPlansCPU")["plans"]
    with pytest.raises(InputError, match="cpu-plans did not write"):
        write_cpu_plans(901, plans_out=mixed, overwrite=True)


@pytest.mark.slow
def test_two_at_once_lose_nothing(make_pool, nnunet, tmp_path):
    """The same pool twice, another share and another pool at once: all samples and all configurations are there."""
    pool, other = make_pool(samples=12), make_pool("other", samples=5)
    running = []
    for i, words in enumerate([(pool,), (pool,), (pool, "--share", "0.25"), (other, "--share", "0.75")]):
        (tmp_path / f"said_{i}").mkdir()
        words = ["add-pool", words[0], 901, "2d", 0, *words[1:]]
        running.append(start("-m", "nnunet_plugin", *words, output=tmp_path / f"said_{i}"))
    status = [process.wait() for process in running]
    assert status == [0, 0, 0, 0], [file.read_text() for file in tmp_path.glob("said_*/stderr")]
    base = nnunet / "preprocessed" / PLAIN
    configurations = json.loads((base / "nnUNetPlansSynthAug.json").read_text())["configurations"]
    assert {"2d_syn25", "2d_syn50", "2d_syn75"} <= set(configurations)
    for name, count in (("pool", 12), ("other", 5)):
        assert len(list((base / "synthaug" / name / "fold_0").glob("*_seg.b2nd"))) == count
    assert not [path for path in base.rglob("*") if path.name.endswith((".partial", ".lock"))]


def test_a_folder_that_cannot_be_written_is_one_line(make_pool, snapshot, monkeypatch, capsys):
    pool = make_pool(samples=1)

    def refused(lock, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", lock.lock_file)

    monkeypatch.setattr("nnunet_plugin.import_pool.FileLock.acquire", refused)
    with pytest.raises(InputError, match="Read-only"):
        add_pool(pool, 901, 0)
    assert main(["add-pool", str(pool), "901", "2d", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_damaged_import_is_mended_by_the_same_command(make_pool, nnunet, snapshot):
    pool = make_pool(samples=3)
    folder = add_pool(pool, 901, 0)["pool_folder"]
    whole, record = sorted(path.name for path in folder.iterdir()), json.loads((folder / "import.json").read_text())
    for damage in (
        lambda: (folder / "syn_000001.b2nd").unlink(),
        lambda: (folder / "syn_000001.pkl").write_bytes(b""),
        lambda: (folder / "import.json").unlink(),
        lambda: (folder / "import.json").write_text("{" * 200_000),
        lambda: (folder / "import.json").write_text(json.dumps({**record, "format_version": 1})),
        lambda: (folder / "import.json").write_text(json.dumps({**record, "samples": {"syn_000000": 3}})),
        lambda: shutil.rmtree(folder),
    ):
        damage()
        assert add_pool(pool, 901, 0)["imported"]
        assert sorted(path.name for path in folder.iterdir()) == whole
        assert not add_pool(pool, 901, 0)["imported"]
    (folder / "notes.txt").write_text("mine")
    for overwrite in (True, False):
        with pytest.raises(InputError, match=r"did not write: notes\.txt"):
            add_pool(pool, 901, 0, overwrite=overwrite)
    (folder / "notes.txt").unlink()
    with pytest.raises(InputError, match="another pool in"):  # mended is what is damaged, not what is another's
        add_pool(make_pool("other", samples=2), 901, 0, pool_name="pool")


def header(shape: tuple, dtype: int = 16) -> bytes:
    """A NIfTI header that asks for an array of any size, and no data."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    raw = bytearray(image.header.binaryblock + b"\0" * 4)
    struct.pack_into("<8h", raw, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", raw, 70, dtype, 32)
    return bytes(raw)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(header((32767, 32767, 32767))),
        gzip.compress(header((32767, 32767, 1))),
        gzip.compress(header((32767,) * 7)),
        gzip.compress(header((-5, 24, 1))),
        gzip.compress(header((24, 24, 1), dtype=999)),
        gzip.compress(header((24, 24, 1)))[:100],
        header((24, 24, 1)),
        b"",
    ],
    ids=["terabytes", "gigabytes", "seven axes", "negative", "type", "cut", "not zipped", "empty"],
)
def test_hostile_images_are_one_line(make_pool, capsys, content):
    pool = make_pool(samples=2)
    (pool / "images/syn_000001_0000.nii.gz").write_bytes(content)
    rehash(pool)
    tracemalloc.start()
    assert main(["add-pool", str(pool), "901", "2d", "0"]) == 1
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()
    error = capsys.readouterr().err
    assert "error: " in error and "syn_000001" in error


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"format": "synthaug-pool", "format_version": 2, "samples": ' + "[" * 200_000,
        '{"format": "synthaug-pool", "format_version": true}',
        "\x00\xff",
        '{"format": "synthaug-pool", "format_version": 1e999}',
    ],
    ids=["lists", "dicts", "samples", "bool", "binary", "infinite"],
)
def test_hostile_records_are_one_line(make_pool, capsys, text):
    pool = make_pool(samples=2)
    (pool / "pool.json").write_text(text)
    for command in (["add-pool", str(pool), "901", "2d", "0"], ["hash-pool", str(pool)]):
        assert main(command) == 1
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("space", "spacing"), 3),
        (("space", "spacing"), [3, "x", 1]),
        (("dataset", "labels"), {"background": 0, "tumor": {"a": 1}}),
        (("dataset", "labels"), {"background": 0, "tumor": [[1]]}),
        (("dataset", "regions_class_order"), "1"),
        (("provenance", "cases"), [[]]),
        (("provenance", "cases"), [{"id": 3}]),
        (("provenance", "fold"), {"a": 1}),
        (("provenance", "validation"), 3),
        (("samples",), [3]),
    ],
)
def test_records_of_other_types_are_one_line(make_pool, capsys, keys, value):
    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    pool = make_pool(samples=1, edit=edit)
    assert main(["add-pool", str(pool), "901", "2d", "0"]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("size", [300, 1000, 3000, 9000])
def test_a_limit_on_the_size_of_files_leaves_nothing_behind(make_pool, nnunet, snapshot, size):
    pool, before = make_pool(samples=2), snapshot()
    with files_of_at_most(size), pytest.raises((OSError, RuntimeError)) as caught:
        add_pool(pool, 901, 0)
    assert "the same command goes on" in str(plain_words(caught.value))
    assert {name: sha256 for name, sha256 in snapshot().items() if before.get(name) != sha256} == {}
    assert add_pool(pool, 901, 0)["samples"] == 2


def test_why_a_file_could_not_be_written_is_said_as_far_as_it_is_known(tmp_path):
    with pytest.raises(RuntimeError) as caught:  # whose words are the same for a full disk, missing rights, no folder
        blosc2.asarray(np.zeros(3), urlpath=str(tmp_path / "none/a.b2nd"))
    assert "could not be written" in str(plain_words(caught.value)) and "folder" in str(plain_words(caught.value))
    assert "ulimit -f" in str(plain_words(OSError(errno.EFBIG, "File too large", "a"))) and (
        "room on the disk" in str(plain_words(OSError(errno.ENOSPC, "No space left on device", "a")))
    )


@pytest.mark.parametrize("name", [
    "Dataset066_MR-liver", "Dataset030_WORD-V0.1.0", "Dataset1234_URDE", "Dataset901", "Dataset005_Zwölf Fälle (a+b)",
])  # fmt: skip
def test_names_that_nnunet_accepts(make_pool, nnunet, monkeypatch, name):
    """By name and by number; a link to the folder has the name of the link, and pools may name either."""
    (nnunet / "ein Büschel [1], $a").mkdir()
    pool = make_pool(samples=1).rename(nnunet / "ein Büschel [1], $a/pool")
    base, elsewhere = nnunet / "vor verarbeitet ü", nnunet / "elsewhere"
    elsewhere.mkdir()
    (nnunet / "preprocessed" / PLAIN).rename(elsewhere / PLAIN)
    (nnunet / "preprocessed").rename(elsewhere / "all")
    base.symlink_to(elsewhere / "all")
    monkeypatch.setenv("nnUNet_preprocessed", str(base))
    (base / name).symlink_to(elsewhere / PLAIN)
    number = int(name[7:].partition("_")[0])
    for dataset in (name, number, f"{number:03d}"):
        assert find_dataset(dataset).name == name
    assert shlex.split(add_pool(pool, number, 0)["train_command"])[1] == name
    content = json.loads((pool / "pool.json").read_text())
    content["dataset"]["name"] = content["provenance"]["dataset"] = name
    (pool / "pool.json").write_text(json.dumps(content))
    assert add_pool(pool, name, 0, pool_name="named", name="named")["imported"]
    for wrong in ("Dataset", "Dataset*", "", ".", "..", f"../{base.name}/{name}", 7, number // 10):
        with pytest.raises(InputError):
            find_dataset(wrong)


def test_one_configuration_serves_all_folds(make_pool, nnunet, make_trainer):
    """The README's own names: pool_fold0 for fold 0, pool_fold1 for fold 1, and no question of overwriting."""
    for fold in range(3):
        result = add_pool(make_pool(f"pool_fold{fold}", fold=fold, samples=2), 901, fold, plans="nnUNetPlansCPU")
        assert result["configuration"] == "2d_syn50" and result["imported"]
        assert result["pool_folder"] == nnunet / "preprocessed" / PLAIN / "synthaug" / "pool" / f"fold_{fold}"
    assert not add_pool(nnunet / "pool_fold0", 901, 0, plans="nnUNetPlansCPU")["imported"]
    for fold in range(3):
        trainer = make_trainer("2d_syn50", fold)
        trainer._set_batch_size_and_oversample()
        trainer.get_tr_and_val_datasets()
    # Names without a pattern: the first one is the configuration's, also for the other folds.
    first = add_pool(make_pool("monday", samples=1), 901, 0, share=0.25)
    second = add_pool(make_pool("tuesday", samples=1, fold=1), 901, 1, share=0.25)
    assert first["pool_folder"].parent == second["pool_folder"].parent
    assert second["pool_folder"].parent.name == "monday"


def to_npz(nnunet):
    """Write the preprocessed slices as nnU-Net did before 2.6; returns their folder."""
    import blosc2

    folder = nnunet / "preprocessed" / PLAIN / "nnUNetPlans_2d"
    for case in range(6):
        data, seg = (blosc2.open(str(folder / f"case_{case}{end}.b2nd"))[:] for end in ("", "_seg"))
        np.savez_compressed(folder / f"case_{case}.npz", data=data, seg=seg)
    for path in folder.glob("*.b2nd"):
        path.unlink()
    return folder


@pytest.mark.slow
def test_npz_preprocessed_data(make_pool, nnunet, make_trainer):
    """Data sets of nnU-Net before 2.6 are .npz, and .npy once nnU-Net unpacked them."""
    pool = make_pool(samples=3)
    folder = to_npz(nnunet)
    training = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    add_pool(pool, 901, 0, plans="nnUNetPlansCPU", training=training)
    trainer = make_trainer("2d_syn50")
    trainer.run_training()
    assert (folder / "case_0.npy").is_file()
    again = make_trainer("2d_syn50")
    again._set_batch_size_and_oversample()
    again.get_tr_and_val_datasets()


@pytest.mark.slow
def test_npz_cases_stay_as_they_are(make_pool, nnunet, make_trainer):
    """Their arrays, which nnU-Net's transforms write into, are read anew for every batch."""
    pool = make_pool(samples=3)
    to_npz(nnunet)
    add_pool(pool, 901, 0, plans="nnUNetPlansCPU")
    trainer = make_trainer("2d_syn50")
    trainer._set_batch_size_and_oversample()
    cases, _ = trainer.get_tr_and_val_datasets()
    name = cases._real.identifiers[0]
    data, seg, *_ = cases._real.load_case(name)
    before = np.array(data), np.array(seg)
    data[:], seg[:] = 7, 7  # as a transform may
    again, labels, *_ = cases._real.load_case(name)
    assert np.array_equal(again, before[0]) and np.array_equal(labels, before[1])
