"""What a trained segmenter says of itself, before it predicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.provenance import read_provenance, record_of_weights
from ..networks.whole import read_weights
from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import read_record


def trained_channels(ckpt_dir: str | Path) -> dict[str, int]:
    """`in_channels` and `out_channels` of the network in a models folder; one each before any training."""
    path = record_of_weights(Path(ckpt_dir) / "provenance.json")
    network = read_record(path, {"network": dict}, "restore the models folder")["network"] if path.is_file() else {}
    return {name: network.get(name, 1) for name in ("in_channels", "out_channels")}


def check_trained(
    ckpt_dir: str | Path, network: Mapping[str, Any], items: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The provenance of the network in a models folder, if it can predict these items.

    Args:
        ckpt_dir: holds `model.pt` and `provenance.json`.
        network: name and arguments of the network that the weights go into.
        items: `{"case": id}` that it is to be evaluated on.

    Raises:
        InputError: nothing was trained there, or another network, its weights are broken, or the network or the
            generator of its pool has learnt from one of the items.
    """
    folder = Path(ckpt_dir)
    provenance = read_provenance(folder / "provenance.json", folder / "model.pt")
    refuse_changes(
        provenance["network"],
        json.loads(json.dumps(network)),
        f"{folder} holds a network",
        "the network that was trained",
        "give the config files and settings of the training, such as configs/unetr.json",
    )
    read_weights(folder / "model.pt")
    seen = _seen(provenance)
    known = {*(case["id"] for case in seen["cases"]), *seen["generator_cases"]}
    if leaked := sorted(known & {item["case"] for item in items}):
        raise InputError(
            f"the network, or the generator of its pool, was trained on {', '.join(leaked)}",
            "cases that they never saw",
            f"evaluate on fold {provenance['fold']}, on which it was trained, or on test cases",
        )
    return provenance


def earlier_training(ckpt_dir: str | Path) -> dict[str, Any]:
    """What the weights in a models folder have learnt from, for the record of a training that starts from them."""
    folder = Path(ckpt_dir)
    provenance = read_provenance(folder / "provenance.json", folder / "model.pt")
    return {"weights_sha256": provenance["weights_sha256"], **_seen(provenance)}


def _seen(provenance: Mapping[str, Any]) -> dict[str, list]:
    """All cases that the weights, and the generators of pools, have learnt from, in this training and before it."""
    training = provenance["training"]
    before = training.get("started_from") or {"cases": [], "generator_cases": []}
    pool = training["pool"] or {"generator_cases": []}
    cases = {(case["id"], case["sha256"]): case for case in (*before["cases"], *provenance["cases"])}
    generator_cases = sorted({*before["generator_cases"], *pool["generator_cases"]})
    return {"cases": list(cases.values()), "generator_cases": generator_cases}


def evaluation_facts(ckpt_dir: str | Path, split: str) -> dict[str, Any]:
    """What the record of an evaluation says of the network that was evaluated; what came from elsewhere has none."""
    folder = Path(ckpt_dir)
    if not (folder / "provenance.json").is_file():  # a client of a federated training, before its first round
        return {"split": split}
    provenance = read_provenance(folder / "provenance.json", folder / "model.pt")
    return {
        "split": split,
        **{key: provenance[key] for key in ("dataset", "fold", "seed", "bundle", "weights_sha256", "network")},
        "training": {key: value for key, value in provenance["training"].items() if key != "plans"},
    }
