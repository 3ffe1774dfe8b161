"""The checks that a bundle must pass: those of MONAI and of the model zoo's CI, for every bundle, without exemption.

What the zoo's `ci/verify_bundle.py` and the unit tests of its bundles call is called here with the same arguments.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata
from torch import Tensor

from ..data.provenance import read_provenance
from ..networks.whole import read_weights
from ..phantom.dataset import write_phantom
from ..runtime.errors import InputError
from .bundle_files import bundle_dir, bundle_names
from .needed import needed_packages

SCHEMA = Path(__file__).with_name("metadata_schema.json")
FILES = (
    "LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/inference.json",
    "configs/train.json", "configs/evaluate.json", "configs/multi_gpu_train.json", "configs/logging.conf",
)  # fmt: skip
CASES = 6  # of the phantom; the fewest of which a fold holds out two
LARGEST = 25 << 20  # bytes; the zoo's CI wants what is larger in large_files.yml
# A short training and a short pool, for checks that need them; settings that a bundle does not have are left out.
SHORT = {
    "max_epochs": 1, "autoencoder_epochs": 1, "feature_steps": 2, "val_interval": 1, "autoencoder_val_interval": 1,
    "grid_interval": 1000, "iterations_per_epoch": 1, "num_samples": 2, "num_steps": 2, "min_foreground": 0,
}  # fmt: skip
CHECKS = (
    "files", "schema", "names", "versions", "weights", "train_properties", "infer_properties", "evaluation",
    "inference", "net_in_out", "torchscript", "values",
)  # fmt: skip


class CheckFailed(Exception):
    """What a check found wrong."""


def verify(*bundles: str) -> str:
    """Check bundles as MONAI and the model zoo's CI do, one line a check; exit status 1 if one of them fails.

    Training, evaluation and inference run on a small phantom, for an epoch, in a folder that is removed again; the
    weights that come with a bundle, where there are some, are those that are exported and looked into.

    Args:
        bundles: Names such as dhvae; all bundles by default.

    Example:
        synthaug verify dhvae lsgan
    """
    folders = [bundle_dir(name) for name in bundles or bundle_names()]
    failures = verify_bundles(folders, lambda line: print(line, flush=True))
    if failures:
        raise InputError(f"{failures} checks failed", "none", "see the lines with FAILED above")
    return f"{len(folders)} bundles passed every check"


def verify_bundles(
    folders: Sequence[Path], report: Callable[[str], Any] = print, checks: Sequence[str] = CHECKS
) -> int:
    """Check bundles, report a line a check (bundle, check, passed or FAILED, what was seen); how many failed."""
    failures = 0
    for folder in folders:
        with ExitStack() as held:
            bundle = Bundle(folder, held)
            for check in checks:
                try:
                    with _quiet():
                        result, seen = "passed", getattr(bundle, f"check_{check}")()
                except Exception as error:  # a bundle may break MONAI in any way; the other checks go on
                    result, seen = "FAILED", _told(error)
                    failures += 1
                report(f"{folder.name:<14}{check:<18}{result:<8}{seen}")
    return failures


class Bundle:
    """A bundle and its checks, which raise, or return what they saw; its folder is the current one meanwhile."""

    def __init__(self, folder: Path, held: ExitStack):
        self.folder = folder
        self.work = Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(_inside(folder))
        self.metadata = json.loads(Path("configs/metadata.json").read_text())

    def check_files(self) -> str:
        """All that the zoo's CI asks for and that its bundles have by convention; none too large for it."""
        if missing := [name for name in FILES if not Path(name).is_file()]:
            raise CheckFailed(f"missing: {', '.join(missing)}")
        large = [str(path) for path in Path().glob("[!s]*/**/*") if path.is_file() and path.stat().st_size > LARGEST]
        if large and not Path("large_files.yml").is_file():
            raise CheckFailed(f"larger than {LARGEST >> 20} MB without large_files.yml: {', '.join(large)}")
        return f"{len(FILES)} files, none larger than {LARGEST >> 20} MB"

    def check_schema(self) -> str:
        """`python -m monai.bundle verify_metadata`, and what the schema cannot say."""
        verify_metadata(meta_file="configs/metadata.json", filepath=SCHEMA)
        if self.metadata["version"] not in self.metadata["changelog"]:
            raise CheckFailed(f"the changelog does not say what is new in {self.metadata['version']}")
        return f"version {self.metadata['version']}, in the changelog"

    def check_names(self) -> str:
        """The zoo finds versions by searching for a name in the names of all bundles: none may be inside another."""
        own, short = self.metadata["zoo_name"], self.metadata["bundle"]
        if self.folder.name not in (own, short):
            raise CheckFailed(f"bundle {short}, zoo_name {own}, in a folder {self.folder.name}")
        if not re.fullmatch("[a-z][a-z0-9_]+", own):
            raise CheckFailed(f"zoo_name {own}, allowed are lower case letters, digits and _")
        for other in bundle_names():
            theirs = json.loads((bundle_dir(other) / "configs/metadata.json").read_text())["zoo_name"]
            if other != short and (own in theirs or theirs in own):
                raise CheckFailed(f"zoo_name {own} and {theirs} of {other} are not told apart by the zoo")
        return own

    def check_versions(self) -> str:
        """Every package that is imported is listed with the version that is installed, here and now."""
        listed = self.metadata["required_packages_version"]
        if unlisted := sorted(set(needed_packages(self.folder)) - set(listed)):
            raise CheckFailed(f"imported, but not in required_packages_version: {', '.join(unlisted)}")
        versions = {**listed, **{name: self.metadata[f"{key}_version"] for name, key in
                                 {"monai": "monai", "torch": "pytorch", "numpy": "numpy"}.items()}}  # fmt: skip
        found = {name: version(name).split("+")[0] for name in versions}
        if different := [
            f"{name} {versions[name]} ({found[name]})" for name in versions if versions[name] != found[name]
        ]:
            raise CheckFailed(f"other versions than those installed (in brackets): {', '.join(different)}")
        return f"{len(versions)} packages as installed"

    def check_weights(self) -> str:
        """A trained network is there, or one can be trained."""
        if self._models == Path("models"):
            record = read_provenance("models/provenance.json", "models/model.pt")
            return f"models/model.pt, of {len(record['cases'])} cases of {record['dataset']}"
        return f"none in the bundle; the other checks use one trained for an epoch on a phantom of {CASES} cases"

    def check_train_properties(self) -> str:
        """`check_properties` of the workflow of train.json."""
        return _missing_properties(self._training)

    def check_infer_properties(self) -> str:
        """`check_properties` of the workflow of inference.json."""
        return _missing_properties(self._inference)

    def check_evaluation(self) -> str:
        """evaluate.json over train.json, as federated learning takes it, runs and leaves numbers."""
        where = {**self._at_phantom, "output_dir": str(self.work / "evaluation")}
        workflow = self._begun("train", ["train", "evaluate"], **where)
        _missing_properties(workflow)
        workflow.run()
        workflow.finalize()
        metrics = {name: round(float(value), 4) for name, value in workflow.evaluator.state.metrics.items()}
        if not metrics or not all(torch.isfinite(torch.tensor(list(metrics.values())))):
            raise CheckFailed(f"the evaluator gives {metrics}")
        return ", ".join(f"{name} {value}" for name, value in metrics.items())

    def check_inference(self) -> str:
        """`python -m monai.bundle run --config_file configs/inference.json` writes something."""
        self._inference.run()
        self._inference.finalize()
        files = [path for path in (self.work / "out").rglob("*") if path.is_file()]
        if not files:
            raise CheckFailed("inference.json wrote nothing to output_dir")
        return f"{len(files)} files"

    def check_net_in_out(self) -> str:
        """`python -m monai.bundle verify_net_in_out network_def`."""
        verify_net_in_out(net_id="network_def", device="cpu", **self._files, **self._settings)
        return f"image {self._shape(self.given)} -> pred {self._shape(self.made)}"

    def check_torchscript(self) -> str:
        """`python -m monai.bundle ckpt_export network_def`, by scripting: the module does what the network does."""
        path = self.work / "model.ts"
        ckpt_export(
            net_id="network_def", filepath=path, ckpt_file=str(self._models / "model.pt"), **self._files,
            **self._settings,
        )  # fmt: skip
        exported, metadata, _ = load_net_with_metadata(str(path))
        x, expected = self._pair
        with torch.inference_mode():  # in a batch of another size, too
            largest = float((exported(torch.cat([x, x])) - torch.cat([expected, expected])).abs().max())
        if not largest <= 1e-4 * max(1.0, float(expected.abs().max())):
            raise CheckFailed(f"differs from the network by {largest:.2g}")
        if metadata["version"] != self.metadata["version"]:
            raise CheckFailed("holds no metadata")
        steps = f" ({self._settings['num_steps']} steps)" if "num_steps" in self._settings else ""
        return f"{path.stat().st_size / 1e6:.1f} MB{steps}, differs by {largest:.1g} on new input"

    def check_values(self) -> str:
        """Shapes, types, channel definitions and value ranges of metadata.json are those of a true pass."""
        for tensor, form in zip(self._pair, (self.given, self.made), strict=True):
            low, high = float(tensor.min()), float(tensor.max())
            if list(tensor.shape[1:]) != self._shape(form) or str(tensor.dtype) != f"torch.{form['dtype']}":
                raise CheckFailed(f"{tuple(tensor.shape)} {tensor.dtype}, described as {form}")
            if not form["value_range"][0] <= low <= high <= form["value_range"][1]:
                raise CheckFailed(f"values {low:.3g} to {high:.3g}, described as {form['value_range']}")
            if sorted(form["channel_def"], key=int) != [str(i) for i in range(form["num_channels"])]:
                raise CheckFailed(f"{form['num_channels']} channels, channel_def {form['channel_def']}")
        return f"pred {low:.2f} to {high:.2f} in {self.made['value_range']}"

    @property
    def given(self) -> dict:
        """How metadata.json describes the input."""
        return self.metadata["network_data_format"]["inputs"]["image"]

    @property
    def made(self) -> dict:
        """How metadata.json describes the output."""
        return self.metadata["network_data_format"]["outputs"]["pred"]

    @staticmethod
    def _shape(form: dict) -> list[int]:
        return [form["num_channels"], *form["spatial_shape"]]

    @property
    def _files(self) -> dict[str, Any]:
        return {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}

    @property
    def _where(self) -> dict[str, str]:
        """Settings that keep the bundle's folder clean."""
        return {"bundle_root": str(self.work), "ckpt_dir": str(self._models), "output_dir": str(self.work / "out")}

    @property
    def _at_phantom(self) -> dict[str, str]:
        """The same, with weights whose data are at hand."""
        return {**self._where, "ckpt_dir": str(self._of_phantom)}

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """Settings of inference.json, with few steps for a generator that samples by steps."""
        known = ConfigParser.load_config_file("configs/inference.json")
        return {**self._where, **{name: SHORT[name] for name in ("num_steps",) if name in known}}

    @cached_property
    def _phantom(self) -> str:
        return str(write_phantom(self.work / "Dataset801_PhantomFLAIR", cases=CASES, test_cases=1))

    @cached_property
    def _training(self) -> Any:
        """The workflow of train.json."""
        return self._begun("train", ["train"], bundle_root=str(self.work))

    @cached_property
    def _inference(self) -> Any:
        """The workflow of inference.json."""
        return self._begun("infer", ["inference"], **self._at_phantom)

    @cached_property
    def _of_phantom(self) -> Path:
        """Folder of weights whose data are at hand, which the bundle's own were perhaps not trained on."""
        self._training.run()
        self._training.finalize()
        return self.work / "models"

    @cached_property
    def _models(self) -> Path:
        """Folder of the bundle's weights, or else of a training of one epoch."""
        return Path("models") if Path("models/model.pt").is_file() else self._of_phantom

    @cached_property
    def _pair(self) -> tuple[Tensor, Tensor]:
        """An input as metadata.json says, and what the network with its weights makes of it."""
        generator = torch.Generator().manual_seed(0)
        shape, (low, high) = (1, *self._shape(self.given)), self.given["value_range"]
        noise = self.given["type"] == "noise"
        x = torch.randn(shape, generator=generator) if noise else torch.rand(shape, generator=generator)
        parser = ConfigParser()
        parser.read_config("configs/inference.json")
        parser.update(self._settings)
        network = parser.get_parsed_content("network_def").cpu().eval()
        network.load_state_dict(read_weights(self._models / "model.pt"))
        with torch.inference_mode():
            x = x if noise else low + (high - low) * x
            return x, network(x)

    def _begun(self, kind: str, configs: Sequence[str], **where: Any) -> Any:
        """An initialised workflow of these configs."""
        files = [f"configs/{name}.json" for name in configs]
        known = set(ConfigParser.load_config_files(files))
        settings = {**SHORT, "dataset_dir": self._phantom, **where}
        given: dict[str, Any] = {name: value for name, value in settings.items() if name in known}
        workflow = create_workflow(config_file=files, workflow_type=kind, logging_file=False, **given)
        workflow.initialize()
        return workflow


def _told(error: BaseException) -> str:
    """What a check found, or the error at the bottom of MONAI's chain, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    kind = "" if isinstance(error, CheckFailed) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:400]


def _missing_properties(workflow: Any) -> str:
    wrong = workflow.check_properties()
    if wrong:
        raise CheckFailed(f"missing or under another key: {', '.join(wrong)}")
    return f"{len(workflow.properties)} properties"


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a bundle's folder, as its macros and its users do."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MONAI logs and warns of off the table, and the process as it was."""
    hook, threads, deterministic = sys.excepthook, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        sys.excepthook = hook
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
