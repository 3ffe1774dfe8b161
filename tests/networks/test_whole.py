"""Weights that are not finite are refused, whichever way they come."""

import json

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader

from scripts.data.provenance import write_provenance
from scripts.networks.whole import read_weights
from scripts.packaging.bundle_files import bundle_dir, bundle_names
from scripts.packaging.metadata import built_network
from scripts.runtime.errors import InputError
from scripts.segmentation.trained import check_trained
from scripts.training.evaluation import check_held_out

CONFIG = "configs/inference.json"


def broken(state: dict, value: float = float("nan")) -> dict:
    """The same with one number of the last tensor that is none."""
    name = [name for name, tensor in state.items() if tensor.is_floating_point()][-1]
    changed = state[name].clone()
    changed.view(-1)[-1] = value
    return {**state, name: changed}


@pytest.mark.parametrize("bundle", bundle_names())
def test_no_network_of_a_bundle_takes_them(bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle_dir(bundle))
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser["ckpt_dir"] = str(tmp_path)
    network = parser.get_parsed_content("network_def")
    state = network.state_dict()
    network.load_state_dict(state)
    torch.save(broken(state), tmp_path / "model.pt")
    evaluator = SupervisedEvaluator("cpu", [], network)
    for load in (
        lambda: network.load_state_dict(broken(state, float("inf"))),
        lambda: CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})(evaluator),  # of a bundle's config
        lambda: read_weights(tmp_path / "model.pt"),
    ):
        with pytest.raises(InputError, match="not finite"):
            load()


def test_nothing_that_reads_a_models_folder_takes_them(monkeypatch, tmp_path):
    """Inference and evaluation of segmenters, evaluation of generators, and packing."""
    monkeypatch.chdir(bundle_dir("segmentation"))
    configs = {"inference.json": ConfigParser.load_config_file(CONFIG)}
    parser = ConfigParser({**configs["inference.json"], "ckpt_dir": str(tmp_path)})
    network, record = (parser.get_parsed_content(name) for name in ("network_def", "network_record"))
    model, provenance = tmp_path / "model.pt", tmp_path / "provenance.json"
    content = {"format_version": 1, "network": json.loads(json.dumps(record)), "cases": [], "training": {"pool": None}}

    def ways():
        yield lambda: check_trained(tmp_path, record)
        yield lambda: built_network(configs, content, model)
        yield lambda: check_held_out(None, tmp_path)

    for state, words in ((broken(network.state_dict()), "not finite"), ({"state_dict": {}}, "cannot be loaded")):
        torch.save(state, model)
        write_provenance(provenance, content, model)
        for way in ways():
            with pytest.raises(InputError, match=f"model.pt.*{words}"):
                way()
