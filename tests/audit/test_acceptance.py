"""What is planted is caught, and new patients are not: on simple heads, slices of a raw data set."""

import json
import shutil

import numpy as np
import pytest
import torch
from nnunet_plugin.pool_format import read_pool as read_by_plugin

from scripts.audit.agreement import SegmenterSettings
from scripts.audit.audit import audit_pool, run_audit
from scripts.audit.thresholds import LEVELS
from scripts.runtime.errors import InputError

from .planted import load, write_heads, write_planted

SHORT = {"segmenter": SegmenterSettings(folds=2, steps=130), "extractor_steps": 60, "progress": False}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A pool of new patients' slices, some spoilt, and of training slices; which is which, and the data set."""
    folder = tmp_path_factory.mktemp("planted")
    data_set = write_heads(folder / "Dataset901_Heads", cases=52, new=22)
    data = load(data_set, 0, (32, 32))
    generator = torch.Generator().manual_seed(0)
    unseen = load(data_set, 1, (32, 32)).validation
    unseen = [unseen[i] for i in torch.randperm(len(unseen), generator=generator)]  # slices of a patient are alike
    new = [item["image"] for item in unseen]
    seen = [item["image"] for item in data.training]
    with_mask = [i for i, x in enumerate(seen) if x[1:].any()]

    def noisy(x: torch.Tensor, amount: float) -> torch.Tensor:
        return torch.cat([(x[:1] + amount * torch.randn(x[:1].shape, generator=generator)).clamp(0, 1), x[1:]])

    kinds: dict[str, list[torch.Tensor]] = {"new": new[:40]}
    chosen = [with_mask[i] for i in torch.randperm(len(with_mask), generator=generator)[:20]]
    kinds["copy"] = [noisy(seen[i].flip(2), 0.02) for i in chosen]
    kinds["changed"] = []
    for number, i in enumerate(chosen):
        x, other = seen[i], seen[chosen[number - 1]]
        ways = (x.rot90(1, (1, 2)), torch.cat([x[:, :16], other[:, 16:]], dim=1))
        kinds["changed"].append(ways[number % 2])
    kinds["blank"] = [torch.cat([x[:1], torch.zeros_like(x[1:])]) for x in new[40:46]]
    kinds["outside"] = []
    for x in new[46:52]:
        corner = torch.zeros_like(x[1:])
        corner[0, :3, :3] = 1
        kinds["outside"].append(torch.cat([x[:1], corner]))
    kinds["swapped"] = []
    for item in unseen[52:72]:
        others = [other["image"] for other in unseen if other["case"] != item["case"]]
        kinds["swapped"].append(torch.cat([item["image"][:1], others[len(kinds["swapped"])][1:]]))
    items = [x for group in kinds.values() for x in group]
    pool = write_planted(folder / "pool", data, items)
    of = np.array([kind for kind, group in kinds.items() for _ in group])
    return pool, data_set, of, [data.training[i] for i in chosen]


@pytest.fixture(scope="module")
def result(planted):
    pool, data_set, _, _ = planted
    return run_audit(pool, data_set, **SHORT)


def rate(flagged: np.ndarray, of: np.ndarray, kind: str) -> float:
    return float(flagged[of == kind].mean())


@pytest.mark.slow
def test_copies_are_caught_and_named_and_new_patients_are_not(planted, result):
    _, _, of, originals = planted
    assert rate(result.copies, of, "copy") == 1
    assert rate(result.copies, of, "new") <= 0.1
    for index, original in zip(np.flatnonzero(of == "copy").tolist(), originals, strict=True):
        found = result.memorisation.copied(index)
        assert (found["case"], found["flipped"]) == (original["case"], "left-right")
        assert found["of"] == f"{original['case']}, slice {original['slice']}"
    assert set(result.closest) <= set(np.flatnonzero(np.isin(of, ["copy", "changed"])).tolist())


@pytest.mark.slow
def test_copies_that_were_turned_or_cut_in_two_are_caught(planted, result):
    assert rate(result.copies, planted[2], "changed") >= 0.9


@pytest.mark.slow
def test_masks_that_are_wrong_are_caught(planted, result):
    of = planted[2]
    checks = {check.key: check for check in result.checks}
    for index, kind in enumerate(of):
        assert ("an empty mask" in result.reasons[index]) == (kind == "blank")
    assert rate(checks["outside_body"].flagged, of, "outside") == 1
    assert rate(checks["outside_body"].flagged, of, "new") <= 0.1
    assert rate(checks["agreement"].flagged, of, "outside") == 1
    assert rate(checks["agreement"].flagged, of, "swapped") >= 0.6
    assert rate(checks["agreement"].flagged, of, "new") <= 0.15
    # Slices of one new patient are near to each other: they are no copies, but duplicates.
    flagged = np.any([check.flagged for key, check in checks.items() if key != "duplicates"], axis=0)
    assert rate(flagged, of, "new") <= 0.2


@pytest.mark.slow
def test_thresholds_are_quantiles_of_real_items(result):
    for check in result.checks:
        beyond = check.beyond(check.real, check.real_bins)
        bins = 1 if check.real_bins is None else check.real_bins.max() + 1
        assert beyond.sum() <= check.level * check.defined.sum() + bins - 1, check.key
        # Items of a patient go together, and so do two patients who are alike by chance.
        few = len(np.unique(check.groups[check.real_flagged])) <= 2
        assert few or check.real_flagged[check.defined].mean() <= 3 * check.level + 0.03, check.key


@pytest.mark.slow
def test_decisions_are_written_once_and_others_are_left_alone(tmp_path):
    data_set = write_heads(tmp_path / "Dataset901_Heads", cases=6, new=0)
    data = load(data_set, 0, (16, 16))
    items = [item["image"] for item in data.training[:8]]
    items[7] = torch.cat([items[7][:1], torch.zeros_like(items[7][1:])])
    pool = write_planted(tmp_path / "pool", data, items)
    quick = {"segmenter": SegmenterSettings(folds=2, steps=2), "extractor_steps": 2, "progress": False}

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()}

    before = files()
    words = audit_pool(pool, data_set, dry_run=True, **quick)
    assert "othing was written" in words and files() == before

    content = json.loads(before["pool.json"])
    content["samples"][0] |= {"decision": "drop", "reason": "motion, says the radiologist"}
    content["samples"][7] |= {"decision": "keep", "reason": "an empty one on purpose"}
    content["samples"][3]["decision"] = "drop"
    content["samples"][2]["scores"]["other"] = 1.0
    (pool / "pool.json").write_text(json.dumps(content))
    audit_pool(pool, data_set, **quick)
    first = files()
    assert set(first) == {"pool.json", "audit.json", "audit.png"}
    samples = json.loads(first["pool.json"])["samples"]
    assert [samples[i]["decision"] for i in (0, 3, 7)] == ["drop", "drop", "keep"]
    assert [samples[i]["reason"] for i in (0, 3, 7)] == [
        "motion, says the radiologist", None, "an empty one on purpose",
    ]  # fmt: skip
    assert samples[2]["scores"]["other"] == 1.0 and samples[2]["scores"]["audit"]["memorisation_pixels"] < 0.5
    assert samples[2]["decision"] == "drop" and samples[2]["reason"].startswith("audit: ")
    assert [{k: v for k, v in s.items() if k not in ("scores", "decision", "reason")} for s in samples] == [
        {k: v for k, v in s.items() if k not in ("scores", "decision", "reason")} for s in content["samples"]
    ]
    kept = [sample["id"] for sample in samples if sample["decision"] == "keep"]
    assert list(read_by_plugin(pool).kept) == kept

    audit_pool(pool, data_set, **quick)
    assert files() == first
    audit_pool(pool, data_set, thresholds={"fragments": 0.2, "agreement": 0.5}, **quick)
    levels = {key: check["level"] for key, check in json.loads(files()["audit.json"])["checks"].items()}
    assert levels == {**LEVELS, "fragments": 0.2, "agreement": 0.5}
    again = json.loads(files()["pool.json"])["samples"]
    assert again[0]["reason"] == "motion, says the radiologist"
    assert [s["scores"] for s in again] == [s["scores"] for s in samples]  # levels change decisions, no scores


@pytest.mark.slow
def test_record_says_what_was_done(planted, result):
    of = planted[2]
    record = result.as_record()
    json.dumps(record, allow_nan=False)
    assert record["seed"] == 0 and record["packages"]["torch"]
    assert result.usefulness is None  # which was not asked for
    assert record["real"]["held_out"]["patients"] == 6 and record["real"]["training"]["patients"] == 24
    assert len(record["memorisation"]["closest"]) == 10
    copies = record["memorisation"]["copies"]
    assert record["memorisation"]["flagged"] == len(copies) >= (of == "copy").sum()
    low, high = record["memorisation"]["interval"]
    assert low < record["memorisation"]["share"] < high
    for found in record["checks"].values():
        assert found["real"]["patients"] > 20 and found["quantiles"]["levels"][0] == 0
    judged = [name for names in record["agreement"]["judges"].values() for name in names if "samples" not in name]
    assert sorted(judged) == sorted(set(result.audit.real.groups))


@pytest.mark.slow
def test_bad_input_is_refused_before_any_work(planted, tmp_path):
    pool, data_set, _, _ = planted
    with pytest.raises(InputError, match="did you mean 'agreement'"):
        audit_pool(pool, data_set, thresholds={"agrement": 0.1})
    for wrong in (-0.1, 0.7, "much", True):
        with pytest.raises(InputError, match="0 to 0.5"):
            audit_pool(pool, data_set, thresholds={"agreement": wrong})
    with pytest.raises(InputError, match="levels by name"):
        audit_pool(pool, data_set, thresholds=0.1)
    with pytest.raises(InputError, match="seed"):
        audit_pool(pool, data_set, seed=-1)
    with pytest.raises(InputError, match="dry_run"):
        audit_pool(pool, data_set, dry_run="false")
    other = tmp_path / "Dataset802_Other"
    shutil.copytree(data_set, other)
    first = next(iter(json.loads((pool / "pool.json").read_text())["provenance"]["cases"]))["id"]
    shutil.copy(data_set / "imagesTr" / "head_000_0000.nii.gz", other / "imagesTr" / f"{first}_0000.nii.gz")
    with pytest.raises(InputError, match=f"changed since.*{first}"):
        audit_pool(pool, other, progress=False)
    splits = json.loads((other / "splits_final.json").read_text())
    splits[0]["train"].remove(first)
    (other / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=f"lacks 1 cases.*{first}"):
        audit_pool(pool, other, progress=False)
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(
        json.dumps(description | {"labels": {"background": 0, "rim": 1, "necrosis": 2}})
    )
    with pytest.raises(InputError, match="other labels"):
        audit_pool(pool, other, progress=False)
