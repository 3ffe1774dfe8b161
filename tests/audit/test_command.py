"""`synthaug audit`: what it prints, what it writes, and what it refuses before any work."""

import functools
import json
import shutil

import pytest
from nnunet_plugin.__main__ import run_commands

from scripts.__main__ import COMMANDS
from scripts.audit.audit import audit_pool
from scripts.audit.thresholds import LEVELS

from .planted import load, write_heads, write_planted

QUICK = {"extractor_steps": 2, "progress": False}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of four training slices and a data set."""
    folder = tmp_path_factory.mktemp("command")
    data_set = write_heads(folder / "Dataset901_Heads", cases=12, new=0)
    data = load(data_set, 0, (16, 16))
    return write_planted(folder / "pool", data, [item["image"] for item in data.training[:4]]), data_set


def synthaug(*words) -> int:
    return run_commands(COMMANDS, "synthaug", argv=["audit", *map(str, words)])


@pytest.mark.slow
def test_what_it_says_and_writes(pool, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.audit.audit.audit_pool", functools.partial(audit_pool, **QUICK))
    folder, data_set = shutil.copytree(pool[0], tmp_path / "pool"), pool[1]
    settings = ["--thresholds", '{"agreement": 0.2, "fragments": 0}', "--seed", 3, "--segmenter_steps", 2,
                "--usefulness_steps", 1]  # fmt: skip
    assert synthaug(folder, "--dataset_dir", data_set, *settings, "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("Dry run: nothing was written.")
    assert not (folder / "audit.json").exists() and not (folder / "audit.png").exists()

    assert synthaug(folder, "--dataset_dir", data_set, *settings) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[-2:] == [str(folder / "audit.json"), str(folder / "audit.png")]
    record = json.loads((folder / "audit.json").read_text())
    assert record["words"] == written[:-2] == said.splitlines()[:-1]
    assert record["seed"] == 3 and record["agreement"]["steps"] == 2 and record["usefulness"]["steps"] == 1
    assert {key: check["level"] for key, check in record["checks"].items()} == {
        **LEVELS, "agreement": 0.2, "fragments": 0.0,
    }  # fmt: skip
    kept = sum(s["decision"] == "keep" for s in json.loads((folder / "pool.json").read_text())["samples"])
    assert written[0].startswith(f"{kept} of 4 samples are kept, {4 - kept} dropped")
    assert all(any(line.startswith(f"  {key} (") for line in written) for key in LEVELS)
    assert any(line.startswith("Copies of training cases: 100.0 %") for line in written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "nothing"}, "nothing"),
        ({"pool": "unfinished"}, "unfinished"),
        ({"--dataset_dir": "nothing"}, "nothing"),
        ({"--thresholds": '{"agrement": 0.1}'}, "did you mean 'agreement'"),
        ({"--thresholds": '{"agreement": 5}'}, "0 to 0.5"),
        ({"--thresholds": "0.05"}, "settings by name"),
        ({"--seed": "-1"}, "--seed -1"),
        ({"--seed": "1.5"}, "--seed 1.5"),
        ({"--segmenter_steps": "0"}, "segmenter_steps 0"),
        ({"--segmenter_steps": "1.5"}, "segmenter_steps 1.5"),
        ({"--dry_run": "maybe"}, "--dry_run"),
        ({"--usefulness_steps": "-3"}, "usefulness_steps -3"),
        ({"--dryrun": "True"}, "dryrun"),
    ],
    ids=str,
)
def test_bad_words_are_refused_before_any_work(pool, capsys, tmp_path, monkeypatch, change, message):
    def work(*_, **__):
        raise AssertionError("work began")

    for name in ("plausibility_checks", "train_segmentation_features", "find_agreement"):
        monkeypatch.setattr(f"scripts.audit.audit.{name}", work)
    folder, data_set = shutil.copytree(pool[0], tmp_path / "pool"), pool[1]
    (tmp_path / "unfinished").mkdir()
    words = {"pool": folder, "--dataset_dir": data_set, **change}
    for name in ("pool", "--dataset_dir"):
        words[name] = tmp_path / words[name] if isinstance(words[name], str) else words[name]
    first = words.pop("pool")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    try:
        status = synthaug(first, *[word for pair in words.items() for word in pair])
    except SystemExit as stopped:  # Fire, for a flag that it does not know
        status = stopped.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
