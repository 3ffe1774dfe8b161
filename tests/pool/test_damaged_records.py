"""Records that somebody damaged: whatever stands in them, it is one error, or it does not matter."""

import json

import pytest
from nnunet_plugin.pool_format import read_pool as plugin_pool

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set
from scripts.metrics.item_sets import open_pool
from scripts.pool.writing import read_pool, write_pool
from scripts.runtime.errors import InputError
from scripts.sampling.latent import LatentSampler

from ..data.toy import write_preprocessed, write_raw
from .toy_generator import make_generator

BYTES = [
    b"", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe\x00", b'{"format": "synthaug-pool", "format_version": 2',
    b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]  # fmt: skip
VALUES = [None, 5, "x", [], {}, [None], {"a": None}, True, float("inf")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each file, and what reads it."""
    root = tmp_path_factory.mktemp("damaged")
    raw, preprocessed = write_raw(root / "Dataset901_Toy"), write_preprocessed(root / "p/Dataset902_Toy")
    generator = make_generator(root / "generator")
    pool = write_pool(LatentSampler(**generator), root / "pool", 2, progress=False)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["toy_000", "toy_001"], "val": ["toy_003"]}]))

    def open_both():
        read_pool(pool), open_pool(pool, root / "generator/Dataset901_Toy"), plugin_pool(pool)

    return {
        "raw": (raw / "dataset.json", lambda: load_training_set(open_cases(raw), (24, 24))),
        "preprocessed": (preprocessed / "dataset.json", lambda: open_cases(preprocessed)),
        "plans": (preprocessed / "nnUNetPlans.json", lambda: open_cases(preprocessed)),
        "splits": (preprocessed / "splits_final.json", lambda: open_cases(preprocessed)),
        "pool": (pool / "pool.json", open_both),
        "provenance": (generator["provenance"], lambda: LatentSampler(**generator)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw", "preprocessed", "plans", "splits", "pool", "provenance"])
def test_a_damaged_record_is_one_error(name, files):
    path, read = files[name]
    whole = path.read_bytes()
    content = json.loads(whole)
    damaged = [*BYTES]
    if isinstance(content, dict):
        for key in content:
            damaged += [json.dumps({**content, key: value}).encode() for value in VALUES]
            damaged.append(json.dumps({other: content[other] for other in content if other != key}).encode())
    else:
        splits = [[3], [{}], [None], [{"train": "x", "val": None}], [{"train": [1], "val": [2]}], {"0": {}}]
        damaged += [json.dumps(value).encode() for value in splits]
    refused = 0
    try:
        for one in damaged:
            path.write_bytes(one)
            try:
                read()
            except InputError:
                refused += 1
    finally:
        path.write_bytes(whole)
    assert refused > len(BYTES) // 2
    read()
