"""The synthaug block: what it refuses, and that it survives JSON."""

import json

import pytest
from nnunet_plugin.errors import InputError
from nnunet_plugin.settings import parse_settings, settings_block

FULL = {
    "pool": "p",
    "share": 0.25,
    "schedule": "steps",
    "steps": [[3, 0.5], [7, 0.0]],
    "warmup_epochs": 1,
    "finish_epochs": 2,
    "seed": 5,
    "training": {
        "num_epochs": 10,
        "optimizer": "AdamW",
        "initial_lr": 1e-3,
        "weight_decay": 0.0,
        "seed": 0,
        "autocast": "auto",
    },
}


def test_block_survives_json():
    settings = parse_settings(FULL)
    assert parse_settings(json.loads(json.dumps(settings_block(settings)))) == settings
    assert settings_block(settings) == FULL


def test_transplants_need_no_pool():
    block = {"transplant": {"share": 0.3, "schedule": "steps", "steps": [[2, 0.1]], "decoys": 0.5}, "seed": 1}
    settings = parse_settings(block)
    assert settings.pool is None and settings_block(settings) == block
    assert parse_settings({"transplant": {}}).transplant.finish(1000) == 200  # by default the last fifth is real
    both = {**FULL, "transplant": {"share": 0.2, "schedule": "constant", "finish_epochs": 0, "decoys": 0.25,
                                    "labels": [1, 3]}}  # fmt: skip
    assert settings_block(parse_settings(both)) == both


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"pool": "p", "shares": 0.5}, "did you mean `share`?"),
        ({"pool": "p", "training": {"epochs": 5}}, "did you mean `num_epochs`?"),
        ({"share": 0.5}, "without `pool`"),
        ({"pool": ""}, "pool = ''"),
        ({"pool": "p", "share": 1.01}, "from 0 to 1"),
        ({"pool": "p", "share": float("nan")}, "share = nan"),
        ({"pool": "p", "share": "half"}, "share = 'half'"),
        ({"pool": "p", "share": True}, "share = True"),
        ({"pool": "p", "schedule": "sine"}, "constant, linear, cosine, steps"),
        ({"pool": "p", "schedule": "linear"}, "share_end"),
        ({"pool": "p", "share_end": 0.5}, "share_end"),
        ({"pool": "p", "schedule": "steps"}, "steps = None"),
        ({"pool": "p", "schedule": "steps", "steps": []}, "at least one pair"),
        ({"pool": "p", "schedule": "steps", "steps": [[2, 0.1], [1, 0.2]]}, "increasing"),
        ({"pool": "p", "schedule": "steps", "steps": [1, 2]}, "list of pairs"),
        ({"pool": "p", "schedule": "steps", "steps": [[1, 2.0]]}, "steps: share"),
        ({"pool": "p", "steps": [[1, 0.5]]}, "with the schedule steps"),
        ({"pool": "p", "warmup_epochs": -1}, "warmup_epochs = -1"),
        ({"pool": "p", "seed": 0.5}, "seed = 0.5"),
        ({"pool": "p", "training": {"num_epochs": 0}}, "num_epochs = 0"),
        ({"pool": "p", "training": {"optimizer": "Adam"}}, "SGD or AdamW"),
        ({"pool": "p", "training": {"initial_lr": 0}}, "above 0"),
        ({"pool": "p", "training": {"autocast": "float16"}}, "auto, bfloat16 or null"),
        ({"pool": "p", "training": [1]}, "training"),
        ({"pool": "p", "warmup_epochs": 6, "finish_epochs": 5, "training": {"num_epochs": 10}}, "at most the 10"),
        ("2d", "settings by name"),
        ({"transplant": {"part": 0.5}}, "unknown setting `part` in the transplant settings"),
        ({"transplant": {"share": 1.5}}, "transplant.share = 1.5"),
        ({"transplant": {"decoys": -0.1}}, "transplant.decoys"),
        ({"transplant": {"finish_epochs": -1}}, "transplant.finish_epochs"),
        ({"transplant": {"steps": [1]}}, "list of pairs"),
        ({"transplant": {"labels": []}}, "transplant.labels = []"),
        ({"transplant": {"labels": 1}}, "transplant.labels = 1"),
        ({"transplant": {"labels": [2, 1]}}, "transplant.labels = [2, 1]"),
        ({"transplant": {"labels": [0]}}, "transplant.labels: label = 0"),
        ({"transplant": {"labels": ["1"]}}, "transplant.labels: label = '1'"),
        ({"transplant": {}, "share": 0.5}, "share of a pool"),
        ({"transplant": {}, "warmup_epochs": 2}, "warmup_epochs of a pool"),
        ({"transplant": {"warmup_epochs": 9}, "training": {"num_epochs": 10}}, "transplant.warmup_epochs 9"),
        ({"pool": "p", "finish_epochs": None}, "finish_epochs = None"),
    ],
)
def test_bad_blocks_are_refused(block, named):
    with pytest.raises(InputError, match="allowed:") as caught:
        parse_settings(block)
    assert named in str(caught.value)
