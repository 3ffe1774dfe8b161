"""Protocols: refused where they are wrong, and planned so that arms compare."""

import copy
import datetime
import re

import pytest
import yaml

from scripts.experiment.accepted import KEYWORDS, check_settings
from scripts.experiment.cells import cell_hashes, plan_cells
from scripts.experiment.nnunet import real_exposures
from scripts.experiment.protocol import DECIDED, PROTOCOLS, check_networks, read_protocol
from scripts.experiment.work import length_of
from scripts.packaging.bundle_files import bundle_dir, bundle_names
from scripts.runtime.errors import InputError

from .fake import PROTOCOL, settings, write_protocol

PRESETS = [
    (path.stem, preset)
    for path in sorted(PROTOCOLS.glob("*.yaml"))
    for preset in yaml.safe_load(path.read_text())["presets"]
]


@pytest.mark.parametrize("name, preset", PRESETS)
def test_protocols_of_the_package(name, preset):
    """Every setting is known to its bundle; arms of one segmenter differ in data alone; pools stay in their fold."""
    s = read_protocol(name, preset) | {"dataset_dir": None, "raw_dir": None}
    cells = {cell.id: cell for cell in plan_cells(s)}
    seen: set[str] = set()
    lengths: dict[str, set] = {}
    for cell in cells.values():
        assert set(cell.needs.values()) <= seen  # each after those that it needs
        seen.add(cell.id)
        for need in cell.needs.values():
            other = cells[need].settings
            assert cell.kind in ("source", "data") or other.get("fold", cell.settings["fold"]) == cell.settings["fold"]
            assert cell.kind == "data" or other.get("real", cell.settings["real"]) == cell.settings["real"]
        if cell.kind == "train":
            assert not {"max_epochs", "iterations_per_epoch", "batch_size"} & set(cell.settings["mixing"])
            length = str([cell.settings[key] for key in ("bundle", "overlays", "settings")])
            assert "epochs_factor" not in cell.settings or "half the steps" in cell.settings["arm"]
            lengths.setdefault(cell.settings["segmenter"], set()).add(length)
            if "pool" in cell.needs:
                assert cell.settings["num_synthetic"] <= cells[cell.needs["pool"]].settings["num_samples"]
    assert all(len(found) == 1 for found in lengths.values())
    assert {"smoke", "small", "paper"} <= {p for n, p in PRESETS if n == name} or name in (
        "smoke",
        "run",
        "demo",
        "tune",
    )


@pytest.mark.parametrize("name, preset", [("seed_tables", "smoke"), ("tune", "cpu"), ("volumes", "smoke")])
def test_networks_of_protocols_can_be_built(name, preset):
    """Overlays that change the training alone, as `seed_papers.json` its optimiser, do not stand in the way."""
    check_networks(read_protocol(name, preset))


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("seeds: [0, 1]", "sedes: [0, 1]", "did you mean seeds"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "different whole numbers"),
        ("seeds: [0, 1]", "seeds: 3", "such as"),
        ("seeds: [0, 1]", "seeds: [4294967296]", "from 0 to 4294967295"),
        ("seeds: [0, 1]", "seeds: [0]\ngenerator_seed: -1", "from 0 to 4294967295"),
        ("{augmentation: x5}", "{augmentation: x4}", "x2, x3, x5"),
        ("{augmentation: x5}", "{}", "exactly one"),  # two references
        ("{augmentation: x5}", "{max_epochs: 9}", "augmentation"),  # an arm of another length
        ("model: {pool: model}", "model: {pool: modle}", "did you mean model"),
        ("model: {pool: model}", "model: {pool: model, share: 2}", "number from 0 to 1"),
        ("model: {bundle: hvae}", "model: {bundle: hvae, settings: {max_epoch: 3}}", "did you mean max_epochs"),
        ("model: {bundle: hvae}", "model: {bundle: hvae, settings: {fold: 3}}", "for all its stages"),
        ("model: {bundle: hvae}", "model: {bundle: hvea}", "bundle"),
        ("overlays: [unetr.json]", "overlays: [unter.json]", "did you mean unetr.json"),
        ("  U-Net: {}", "  U-Net: {settings: {share: 0.1}}", "for all its stages"),
        ("  U-Net: {}", "  U-Net: {bundle: nnunet}", "arms without augmentation"),
        ("  U-Net: {}", "  U-Net: {bundle: nnunet, arms: [real only]}", "space: nnunet"),
        ("pool_metrics: {}", "pool_metrics: {resample: 3}", "did you mean resamples"),
        ("real: [all]", "real: [1]", "from 2"),
    ],
)
def test_wrong_settings_are_refused_by_name(old, new, words, tmp_path):
    assert old in PROTOCOL
    with pytest.raises(InputError, match=words):
        settings(tmp_path, PROTOCOL.replace(old, new))


@pytest.mark.parametrize("value", [
    '"$__import__(\'os\').getcwd()"', '"@train#trainer"', '"%configs/train.json::train"', "{_target_: os.getcwd}",
    "[1, [$x]]", '"{\'_target_\': \'os.getcwd\'}"', '"\'$x\'"', '" $x"', "{a: {b: '@c'}}",
])  # fmt: skip
@pytest.mark.parametrize("place", [
    "model: {bundle: hvae, settings: {gradient_clip: VALUE}}",
    "model: {bundle: hvae, sampling: {condition: VALUE}}",
    "model: {bundle: hvae, settings: {train#trainer: VALUE}}",
])  # fmt: skip
def test_what_monai_would_evaluate_is_refused(place, value, tmp_path):
    text = PROTOCOL.replace("model: {bundle: hvae}", place.replace("VALUE", value))
    with pytest.raises(InputError, match="MONAI would evaluate"):
        settings(tmp_path, text)


@pytest.mark.parametrize("old, new, words", [
    ("x5: {augmentation: x5}", "x5: {augmentation: $x}", "MONAI would evaluate"),
    ("U-Net: {}", "U-Net: {settings: {learning_rate: $x}}", "MONAI would evaluate"),
    ("title: A made-up", "plans: $x\ntitle: A made-up", "MONAI would evaluate"),
    ("{bundle: hvae}", "{bundle: ../../somewhere}", "bundle"),
    ("overlays: [unetr.json]", "overlays: [../../../tmp/evil.json]", "overlay"),
    ("{bundle: hvae}", "{bundle: hvae, settings: {train#optimizer#_target_: os.getcwd}}", "MONAI would evaluate"),
])  # fmt: skip
def test_nothing_of_a_protocol_is_code(old, new, words, tmp_path):
    assert old in PROTOCOL
    with pytest.raises(InputError, match=words):
        settings(tmp_path, PROTOCOL.replace(old, new, 1))


@pytest.mark.slow
@pytest.mark.parametrize("bundle", bundle_names())
def test_what_a_bundle_builds_stays_and_plain_values_may_change(bundle, monkeypatch):
    """At every place of a training's configuration, however deep: known by its name, of its kind, or refused."""
    from monai.bundle import ConfigParser

    content = ConfigParser.load_config_file(bundle_dir(bundle) / "configs/train.json")
    monkeypatch.setattr(ConfigParser, "load_config_files", lambda files: content)  # read once
    taken = 0
    for place in places(content):
        name, value = "#".join(map(str, place)), content
        for part in place:
            value = value[part]
        if not name or place[0] in DECIDED:
            continue
        itself, unknown = f"^setting {re.escape(name)} of --generator", "unknown setting|allowed: a setting of"
        for other, said, words in [
            (name, {}, itself), (name, [], itself), (f"{name}y", 1, unknown), (f"{name}#deeper", 1, "unknown|lies in"),
        ]:  # fmt: skip
            keyword = {*KEYWORDS} & {*other.split("#")}
            with pytest.raises(InputError, match="MONAI would evaluate" if keyword else words):
                check_settings("--generator", bundle, "train.json", [], {other: said}, DECIDED)
        if isinstance(value, (bool, int, float)) and "record" not in place:
            check_settings("--generator", bundle, "train.json", [], {name: value}, DECIDED)
            taken += 1
    assert taken > 10


@pytest.mark.parametrize("name, value, words", [
    ("train#handlers", [], "builds or computes itself"),
    ("train#optimizer#lrr", 1, "did you mean train#optimizer#lr"),
    ("network_def#nonsense", 1, "unknown setting network_def#nonsense"),
    ("network_def", 1, "builds or computes itself"),
    ("grid", [8, 8], "builds or computes itself"),
    ("data#cases", 1, "lies inside"),
    ("record#seed", 1, "which is seed"),
    ("record#bundle#name", "other", "builds or computes itself"),
    ("train#trainer#max_epochs", 3, "write max_epochs"),
    ("train#optimizer#lr", "fast", "a number, such as 0.001"),
    ("train#update#gradient_clip", "hard", "a number, such as 1.0"),
    ("max_epochs", None, "a whole number"),
    ("discriminator_optimizer#kind", "Adam", "a word inside what the bundle builds"),
    ("train#optimizer#params", "x", "builds or computes itself"),
])  # fmt: skip
def test_nested_settings_of_a_protocol(name, value, words, tmp_path):
    content = yaml.safe_load(PROTOCOL)
    content["generators"]["model"]["settings"] = {name: value}
    with pytest.raises(InputError, match=words):
        settings(tmp_path, yaml.safe_dump(content))
    for good in ({"train#optimizer#lr": 0.1}, {"size_multiple": 8}, {"gradient_clip": None}, {"spatial_size": "auto"}):
        content["generators"]["model"]["settings"] = good
        assert settings(tmp_path, yaml.safe_dump(content))["generators"]["model"]["settings"] == good


def test_each_cell_trains_its_own_first_stage(tmp_path):
    text = PROTOCOL.replace("model: {bundle: hvae}", "model: {bundle: ldm, settings: {autoencoder_dir: /a}}")
    with pytest.raises(InputError, match="each cell has its own, for all its stages"):
        settings(tmp_path, text)


@pytest.mark.parametrize("text", ["[" * 20000, "a: [", "!!python/object/apply:os.getcwd []", "- 1", "", "\0"])
def test_what_is_no_protocol_is_told_in_one_line(text, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match="p.yaml (is no YAML|holds no settings)") as error:
        read_protocol(tmp_path / "p.yaml")
    assert len(str(error.value).splitlines()) == 1


ODD = [None, 5, "x", [[1]], {"a": 1}, datetime.date(2020, 1, 1)]


def places(content, path=()):
    """Every place in a protocol."""
    yield path
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places(content[key], (*path, key))


@pytest.mark.slow
def test_whatever_stands_in_a_protocol_is_taken_or_told_in_one_line(tmp_path):
    content = yaml.safe_load(PROTOCOL) | {"inner": {"fold": 0, "folds": 3}, "presets": {"one": {"seeds": [3]}}}
    del content["arms"]["x5"]  # whose check imports MONAI
    read_protocol(write_protocol(tmp_path, yaml.safe_dump(content)))
    refused = 0
    for path in places(content):
        for value in ODD:
            changed = copy.deepcopy(content) if path else value
            if path:
                inner = changed
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = value
            try:
                plan_cells(settings(tmp_path, yaml.safe_dump(changed)))
            except InputError as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("old, new", [
    ("x5: {augmentation: x5}", "pasted!: {pool: pasted, num_synthetic: [20]}"),
    ("num_synthetic: [20]", "num_synthetic: [20, 20]"),
    ("  U-Net: {}", "  U-Net: {}\n  U Net: {}"),
])  # fmt: skip
def test_two_things_of_one_name_are_refused(old, new, tmp_path):
    """Their results would lie in one folder, and one of them would never be made."""
    s = settings(tmp_path, PROTOCOL.replace(old, new))
    with pytest.raises(InputError, match="several cells of the name"):
        plan_cells(s)


def test_an_arm_carries_what_its_segmenter_takes(tmp_path):
    """Without further code: a setting that a bundle or the plugin learns is one that arms may have."""
    s = settings(tmp_path, PROTOCOL.replace("x5: {augmentation: x5}", "x5: {augmentation: x5, warmup_epochs: 2}"))
    cell = next(cell for cell in plan_cells(s) if cell.kind == "train" and cell.settings["arm"] == "x5")
    assert cell.settings["mixing"] == {"augmentation": "x5", "warmup_epochs": 2}
    text = "space: nnunet\n" + PROTOCOL.replace("  UNETR: {overlays: [unetr.json], arms: [real only, model]}",
                                               "  nnU-Net: {bundle: nnunet, arms: [real only, model]}")  # fmt: skip
    s = settings(tmp_path, text.replace("model: {pool: model}", "model: {pool: model, schedule: linear, share_end: 0}"))
    with pytest.raises(InputError, match="arm 'model' of segmenter 'nnU-Net': share_end"):
        settings(tmp_path, text.replace("model: {pool: model}", "model: {pool: model, schedule: steps, share_end: 0}"))


def test_a_reference_can_be_named(tmp_path):
    s = settings(
        tmp_path, PROTOCOL.replace("title:", "reference: x5\ntitle:").replace("real only, model]", "x5, model]")
    )
    found = {cell.settings["arm"] for cell in plan_cells(s) if cell.kind == "evaluate" and cell.settings["reference"]}
    assert found == {"x5"}
    with pytest.raises(InputError, match="reference of every comparison"):  # UNETR has no such arm
        settings(tmp_path, PROTOCOL.replace("title:", "reference: x5\ntitle:"))
    before, after = (cell_hashes(plan_cells({**s, "reference": name})) for name in ("x5", "real only"))
    assert before == after  # it decides no result


def test_all_training_patients_and_budgets(tmp_path):
    text = PROTOCOL.replace("folds: [0, 1]", "folds: [all]")
    with pytest.raises(InputError, match="evaluate"):
        settings(tmp_path, text)
    s = settings(tmp_path, text.replace("title:", "evaluate: [test]\nbudget: real_exposures\ntitle:"))
    cells = plan_cells(s)
    assert {cell.settings["fold"] for cell in cells if "fold" in cell.settings} == {"all"}
    trains = [cell.settings for cell in cells if cell.kind == "train"]
    assert all(one["mixing"]["budget"] == "real_exposures" for one in trains)  # of the bundle, as it is
    assert real_exposures(40, 10, {"share": 0.5}, True) == 80 and real_exposures(40, 10, {}, False) == 40
    grafts = {"transplant": {"share": 0.5}}  # by default in all but the last fifth of the epochs
    assert real_exposures(40, 10, grafts, False) == 67 and real_exposures(40, 10, {"share": 0.1, **grafts}, True) == 80
    assert real_exposures(40, 10, {"share": 0.5, "finish_epochs": 5}, True) == 53  # a quarter of all is synthetic
    with pytest.raises(InputError, match="did you mean steps"):
        settings(tmp_path, PROTOCOL + "budget: step\n")


def test_presets_lie_over_the_rest(tmp_path):
    large = "{seeds: [5], arms: {x5: null}, generators: {model: {overlays: [vae.json]}}}"
    text = f"{PROTOCOL}presets:\n  small: {{}}\n  large: {large}\n"
    path = write_protocol(tmp_path, text)
    small, large = read_protocol(path), read_protocol(path, "large")
    assert (small["preset"], small["seeds"], "x5" in small["arms"]) == ("small", [0, 1], True)
    assert (large["seeds"], list(large["arms"])) == ([5], ["real only", "pasted", "model"])
    assert large["generators"]["model"] == {"bundle": "hvae", "overlays": ["vae.json"]}
    with pytest.raises(InputError, match="did you mean large"):
        read_protocol(path, "larg")
    with pytest.raises(InputError, match="did you mean smoke"):
        read_protocol("smok")


def test_pools_are_as_large_as_the_largest_arm_and_audited_unless_pasted(tmp_path):
    cells = plan_cells(settings(tmp_path))
    pools = {cell.settings["label"]: cell.settings["num_samples"] for cell in cells if cell.kind == "pool"}
    assert pools == {"model": 25, "pasted": 20}  # a quarter more, for the audit
    assert {cell.settings["label"] for cell in cells if cell.kind == "audit"} == {"model"}
    assert not [cell for cell in cells if cell.kind == "generator" and cell.settings["label"] == "pasted"]
    waiting = [cell for cell in cells if cell.kind in ("train", "metrics") and cell.settings.get("arm") == "model"]
    assert waiting and all("audit" in cell.needs for cell in waiting)


def test_arms_of_transplants_and_online_augmentation(tmp_path):
    arms = "  x5: {augmentation: online}\n  grafts: {augmentation: online, transplant: {share: 0.3}}"
    s = settings(tmp_path, PROTOCOL.replace("  x5: {augmentation: x5}", arms))
    mixing = {cell.settings["arm"]: cell.settings["mixing"] for cell in plan_cells(s) if cell.kind == "train"}
    assert mixing["grafts"] == {"augmentation": "online", "transplant": {"share": 0.3}}
    with pytest.raises(InputError, match="did you mean share"):
        settings(tmp_path, PROTOCOL.replace("  x5: {augmentation: x5}", arms.replace("share:", "shar:")))


def test_an_arm_of_another_length_and_a_segmenter_of_another_budget(tmp_path):
    text = PROTOCOL.replace("  x5: {augmentation: x5}", "  half: {epochs_factor: 0.5}\n  x5: {augmentation: x5}")
    text = text.replace("title:", "reference: real only\ntitle:").replace("  U-Net: {}", "  U-Net: {budget: epochs}")
    cells = {cell.id: cell for cell in plan_cells(settings(tmp_path, text)) if cell.kind == "train"}
    half = cells["train/U-Net_half_n0_real-all_fold0_seed0"].settings
    real = cells["train/U-Net_real-only_n0_real-all_fold0_seed0"].settings
    assert half["mixing"] == real["mixing"] == {"budget": "epochs"} and half["settings"] == real["settings"]
    assert length_of(half) == {"max_epochs": 10} and length_of(real) == {}  # of the bundle's 20
    assert length_of({**half, "overlays": ["evidence.json"]}) == {"max_epochs": 15}
    assert length_of({**half, "settings": {"max_epochs": 1}}) == {"max_epochs": 1}
    assert "budget" not in cells["train/UNETR_model_n10_real-all_fold0_seed0"].settings["mixing"]
    with pytest.raises(InputError, match="epochs_factor 0"):
        settings(tmp_path, text.replace("epochs_factor: 0.5", "epochs_factor: 0"))
    with pytest.raises(InputError, match="did you mean epochs"):
        settings(tmp_path, text.replace("budget: epochs", "budget: epoch"))


def test_pools_of_real_slices_need_no_generator_and_no_audit(tmp_path):
    for bundle in ("duplicates", "classical"):
        s = settings(tmp_path, PROTOCOL.replace("pasted: {bundle: copy_paste}", f"pasted: {{bundle: {bundle}}}"))
        kinds = {cell.kind for cell in plan_cells(s) if cell.settings.get("label") == "pasted"}
        assert kinds == {"pool", "metrics"}
