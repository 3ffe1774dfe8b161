"""Unit test of one bundle, in the habits of the MONAI model zoo: training, evaluation and inference on phantoms.

Run it in the folder above `models`, in which the bundle lies: `python -m unittest test_NAME.py`. `synthaug pack` writes
it, with the bundle's name, beside the zip; in the zoo it belongs to `ci/unit_tests`.
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
import unittest
from typing import Any

from monai.bundle import ConfigWorkflow, load
from parameterized import parameterized

BUNDLE = "ZOO_NAME"
ROOT = os.path.abspath(os.path.join("models", BUNDLE))
# Settings that a bundle does not have are left out.
SHORT = {
    "max_epochs": 1,
    "autoencoder_epochs": 1,
    "feature_steps": 2,
    "val_interval": 1,
    "autoencoder_val_interval": 1,
    "grid_interval": 1000,
    "iterations_per_epoch": 1,
    "num_samples": 2,
    "num_steps": 2,
    "min_foreground": 0,
}
TEST_CASES = [[{"seed": 1, "batch_size": 4}]]


def run(files, workflow_type, **overrides):
    """Make, check, run and end a workflow of some config files of the bundle."""
    paths = [os.path.join(ROOT, "configs", file) for file in files]
    known = {}
    for path in paths:
        with open(path) as file:
            known.update(json.load(file))
    workflow = ConfigWorkflow(
        workflow_type=workflow_type,
        config_file=paths,
        logging_file=os.path.join(ROOT, "configs/logging.conf"),
        meta_file=os.path.join(ROOT, "configs/metadata.json"),
        **{key: value for key, value in {**SHORT, **overrides}.items() if key in known},
    )
    workflow.initialize()
    missing = workflow.check_properties()
    if missing:
        raise ValueError(f"the configs lack required properties: {missing}")
    workflow.run()
    workflow.finalize()
    return workflow


class TestBundle(unittest.TestCase):
    """Each test trains, evaluates and infers in a folder of its own; the folder of the bundle is left as it is."""

    data: str
    dataset_dir: str

    @classmethod
    def setUpClass(cls):
        """Phantoms, made by the bundle itself."""
        cls.data = tempfile.mkdtemp()
        if ROOT not in sys.path:
            sys.path.insert(0, ROOT)
        phantoms = importlib.import_module("scripts.phantom.dataset")
        cls.dataset_dir = str(phantoms.write_phantom(os.path.join(cls.data, "Dataset801_PhantomFLAIR"), "flair", 6, 1))

    @classmethod
    def tearDownClass(cls):
        """Remove them."""
        shutil.rmtree(cls.data)

    def setUp(self):
        """A folder for what the test writes."""
        self.folder = tempfile.mkdtemp()

    def tearDown(self):
        """Remove it."""
        shutil.rmtree(self.folder)

    @parameterized.expand(TEST_CASES)
    def test_train_evaluate_infer(self, override):
        """The weights of a short training are evaluated on held-out cases, and infer."""
        override = {"dataset_dir": self.dataset_dir, "bundle_root": self.folder, **override}
        run(["train.json"], "train", **override)
        self.assertTrue(os.path.isfile(os.path.join(self.folder, "models/model.pt")))
        evaluated = run(["train.json", "evaluate.json"], "train", **override)
        self.assertGreater(len(evaluated.evaluator.state.metrics), 0)
        output = os.path.join(self.folder, "output")
        run(["inference.json"], "infer", **override, output_dir=output)
        self.assertGreater(len(os.listdir(output)), 0)

    def test_weights_load(self):
        """The weights that come with the bundle fill its network."""
        network: Any = load(BUNDLE, bundle_dir=os.path.dirname(ROOT), source="github", workflow_type="inference")
        self.assertGreater(sum(p.numel() for p in network.parameters()), 0)


if __name__ == "__main__":
    unittest.main()
