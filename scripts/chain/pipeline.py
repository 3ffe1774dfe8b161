"""The whole chain by its public commands: real cases, generator, pool, nnU-Net with and without it, report.

Each stage is a command that a user can run alone; this module runs them one after the other in one folder, skips
those that are finished, and keeps the output of each in `logs/`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.cases import open_cases
from ..data.description import DatasetDescription, read_description
from ..experiment.nnunet_commands import (
    CPU_PLANS,
    cpu_plans_command,
    nnunet_environment,
    predict_command,
    preprocess_command,
    results_folder,
    train_command,
    training_settings,
)
from ..experiment.record import FinishedRun, chain_record, choose_device, device_words, num_processes
from ..experiment.stages import Environment, count_fraction, follow, pattern_fraction
from ..packaging.bundle_files import bundle_command, bundle_dir, known_settings
from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import file_sha256, write_json, write_text
from .settings import ChainSettings


@dataclass(frozen=True)
class Arm:
    """One nnU-Net training: its configuration name, share and seed."""

    name: str
    configuration: str
    share: float
    seed: int


def run_chain(dataset_dir: str | Path, output_dir: str | Path, settings: ChainSettings, command: str) -> Path:
    """Run every stage and write `report.html` and `run.json`; returns the report's path.

    Args:
        dataset_dir: raw nnU-Net data set folder `DatasetNNN_NAME` with `imagesTs` and `labelsTs`.
        output_dir: working folder; the same command goes on where it stopped.
        settings: what to do.
        command: how the user called it, for the report.

    Raises:
        InputError: the data set or the settings cannot be used, or a stage failed (its log is named).
    """
    return _Chain(Path(dataset_dir).resolve(), Path(output_dir).resolve(), settings, command).run()


class _Chain:
    def __init__(self, dataset_dir: Path, output_dir: Path, settings: ChainSettings, command: str):
        self.settings, self.command, self.out = settings, command, output_dir
        self.description = _check_dataset(dataset_dir)
        settings.check()
        self.test_ids = _test_ids(dataset_dir, self.description)
        _same_settings(output_dir, dataset_dir, settings)
        self.dataset_dir = dataset_dir
        self.number = str(int(self.description.name[7:10]))
        self.raw, self.preprocessed, self.results = (
            output_dir / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        )
        self.preprocessed_set = self.preprocessed / self.description.name
        self.plans = "nnUNetPlans" if settings.full_plans else CPU_PLANS
        self.syn_plans = f"{self.plans}SynthAug"
        self.arms = [
            Arm(name, f"{settings.configuration}_syn{100 * share:g}_seed{seed}", share, seed)
            for seed in settings.seeds
            for name, share in (
                ("real only", 0.0),
                (f"real + synthetic ({100 * settings.share:g} %)", settings.share),
            )
        ]
        self.stage_count = 5 + 2 * len(self.arms)
        self.stage_number = 0
        self.seconds: dict[str, float] = {}
        self.device = choose_device()

    def run(self) -> Path:
        for folder in (self.raw, self.preprocessed, self.results, self.out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        link = self.raw / self.description.name
        if not link.exists():
            link.symlink_to(self.dataset_dir, target_is_directory=True)
        self.started = time.strftime("%Y-%m-%d %H:%M")
        self._preprocess()
        self._generator()
        self._pool()
        for arm in self.arms:
            self._train(arm)
            self._test(arm)
        return self._report()

    def _preprocess(self) -> None:
        self._stage(
            "plan and preprocess the real cases (nnU-Net)",
            preprocess_command(self.number, self.settings.configuration),
            done=self.preprocessed_set / "preprocessed.done",
            then=self._preprocessed,
        )
        if not self.settings.full_plans:
            self._stage(
                "plans for a CPU (a smaller network on the same data)",
                cpu_plans_command(self.number),
                done=self.preprocessed_set / f"{CPU_PLANS}.json",
            )

    def _preprocessed(self) -> None:
        """Take over the data set's own folds, then mark the stage: nnU-Net makes its folder before the first case."""
        own = self.dataset_dir / "splits_final.json"
        if own.is_file():
            write_text(self.preprocessed_set / own.name, own.read_text())
        (self.preprocessed_set / "preprocessed.done").touch()

    def _generator(self) -> None:
        s = self.settings
        self.models = self.out / "generator" / "models"
        overrides = {
            "dataset_dir": str(self.preprocessed_set),
            "configuration": s.configuration,
            "fold": s.fold,
            **dict(s.generator),
        }
        self._run_bundle(
            f"train the generator ({s.bundle})",
            "train.json",
            overrides,
            done=self.models / "provenance.json",
            progress=r"epoch (\d+)/(\d+):",
        )

    def _run_bundle(
        self, title: str, config: str, overrides: dict[str, Any], done: Path, progress: str, processes: int = 1
    ) -> None:
        """A stage that runs one config of the generator's bundle, with the overlays, in the bundle's folder."""
        s = self.settings
        settings = {"bundle_root": str(self.out / "generator"), "seed": s.seed, **overrides}
        self._stage(
            title,
            bundle_command((config, *s.overlays), settings, processes),
            done=done,
            cwd=bundle_dir(s.bundle),
            fraction=pattern_fraction(progress),
        )

    def _pool(self) -> None:
        s = self.settings
        self.pool = self.out / "pool"
        known = known_settings(bundle_dir(s.bundle) / "configs", "inference.json")
        overrides = {
            "output_dir": str(self.pool),
            "num_samples": s.num_samples,
            **{key: value for key, value in s.generator if key in known},
        }
        self._run_bundle(
            f"sample a pool of {s.num_samples}",
            "inference.json",
            overrides,
            done=self.pool / "samples.png",
            progress=r"(\d+)/(\d+) \[",
            processes=num_processes(self.device),
        )
        from ..report.pool import pool_sheet

        cases = open_cases(self.preprocessed_set, s.fold, configuration=s.configuration)
        self.sheet = pool_sheet(self.pool, cases, path=self.out / "samples.png")

    def _train(self, arm: Arm) -> None:
        s = self.settings
        training = training_settings(s.num_epochs, s.num_iterations_per_epoch, arm.seed, s.full_plans)
        from nnunet_plugin.import_pool import add_pool

        with self._environment():
            add_pool(
                self.pool, self.number, s.fold, s.configuration, arm.share, plans=self.plans, plans_out=self.syn_plans,
                name=arm.configuration, seed=s.seed + arm.seed, training=training,
            )  # fmt: skip
        folder = self._results(arm)
        self._stage(
            f"train nnU-Net, {arm.name}, seed {arm.seed}",
            train_command(self.number, arm.configuration, s.fold, self.syn_plans, self.device, folder),
            done=folder / "checkpoint_final.pth",
            fraction=pattern_fraction(r"Epoch (\d+)", total=s.num_epochs),
            # Without background workers a training gives the same weights twice, which a CPU preset can afford.
            variables={} if s.full_plans else {"nnUNet_n_proc_DA": "0"},
        )

    def _test(self, arm: Arm) -> None:
        folder = self._results(arm) / "test"
        self._stage(
            f"test on {len(self.test_ids)} held-out cases, {arm.name}, seed {arm.seed}",
            predict_command(
                self.number, arm.configuration, self.settings.fold, self.syn_plans, self.device,
                self.dataset_dir / "imagesTs", folder,
            ),
            done=folder / "summary.json",
            then=lambda: self._evaluate(folder),
            fraction=count_fraction("Prediction done|done with", len(self.test_ids)),
        )  # fmt: skip

    def _evaluate(self, folder: Path) -> None:
        """nnU-Net's own evaluation; the summary is written last, so it marks the stage as done."""
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple

        labels = [value for name, value in self.description.labels.items() if name not in ("background", "ignore")]
        temporary = folder / "summary.partial.json"
        compute_metrics_on_folder_simple(
            str(self.dataset_dir / "labelsTs"), str(folder),
            [tuple(value) if isinstance(value, list) else value for value in labels],
            str(temporary), num_processes=1, ignore_label=self.description.ignore_label,
        )  # fmt: skip
        temporary.rename(folder / "summary.json")

    def _results(self, arm: Arm) -> Path:
        return results_folder(
            self.results, self.description.name, arm.configuration, self.syn_plans, self.settings.fold
        )

    def _report(self) -> Path:
        from ..report.page import write_report

        s = self.settings
        runs = [FinishedRun(arm.name, arm.share, arm.seed, self._results(arm)) for arm in self.arms]
        plans = {
            "plans": self.plans, "epochs": s.num_epochs, "iterations per epoch": s.num_iterations_per_epoch,
            "optimizer": "nnU-Net's own" if s.full_plans else "AdamW, 2e-3", "test-time mirroring": False,
        }  # fmt: skip
        record = chain_record(
            self.description,
            self.models,
            self.pool,
            runs,
            self.out / "shares",
            s.num_epochs * s.num_iterations_per_epoch,
        )
        record |= {
            "command": self.command,
            "started": self.started,
            "seconds": self._timings(),
            "device": device_words(self.device),
            "pictures": {"samples": str(self.sheet)},
        }
        record["segmentation"]["settings"] = plans
        if not s.full_plans:
            record["limits"].append("The sizes are a CPU preset: a small nnU-Net and a short training.")
        return write_report(record, self.out / "report.html")

    def _timings(self) -> dict[str, float]:
        """Seconds of each stage, also of those that an earlier call finished."""
        path = self.out / "seconds.json"
        return json.loads(path.read_text()) if path.is_file() else self.seconds

    def _stage(
        self,
        title: str,
        command: list[str],
        done: Path,
        cwd: Path | None = None,
        fraction: Callable[[str], float | None] | None = None,
        then: Callable[[], None] | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        """Run one command unless `done` exists; show its progress, keep its output."""
        self.stage_number += 1
        heading = f"[{self.stage_number}/{self.stage_count}] {title}"
        if done.exists():
            print(f"{heading}: finished before")
            return
        print(heading)
        log = self.out / "logs" / (re.sub(r"\W+", "_", title).strip("_") + ".log")
        start = time.monotonic()
        with self._environment(**(variables or {})), open(log, "a") as output:
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            with subprocess.Popen(
                command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            ) as process:
                tail = follow(process, output, fraction)
        if process.returncode != 0 or (then is None and not done.exists()):
            raise InputError(
                f"stage “{title}” failed with status {process.returncode}:\n    " + "\n    ".join(tail),
                "a stage that ends well",
                f"read {log}, mend the cause and give the same command again: finished stages are kept",
            )
        if then is not None:
            then()
        self.seconds = {**self._timings(), title: round(time.monotonic() - start, 1)}
        write_json(self.out / "seconds.json", self.seconds)
        print(f"    done in {self.seconds[title]:.0f} s")

    def _environment(self, **variables: str) -> Environment:
        return nnunet_environment(self.out, self.settings.full_plans, **variables)


def _check_dataset(dataset_dir: Path) -> DatasetDescription:
    description = read_description(dataset_dir)
    if not re.fullmatch(r"Dataset\d{3}_\w+", description.name):
        raise InputError(f"folder name {description.name}", "DatasetNNN_NAME, as nnU-Net wants it", "rename the folder")
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        if not (dataset_dir / name).is_dir():
            raise InputError(
                f"no {name} in {dataset_dir}",
                "imagesTr, labelsTr, and imagesTs with labelsTs to measure on",
                "add the folder; keep some annotated patients apart as test cases",
            )
    return description


def _test_ids(dataset_dir: Path, description: DatasetDescription) -> list[str]:
    ending = description.file_ending
    ids = sorted(path.name[: -len(ending)] for path in (dataset_dir / "labelsTs").glob(f"*{ending}"))
    channels = range(description.num_image_channels)
    files = [dataset_dir / "imagesTs" / f"{name}_{channel:04d}{ending}" for name in ids for channel in channels]
    absent = [path.name for path in files if not path.is_file()]
    seen = {file_sha256(path): path.name for path in (dataset_dir / "imagesTr").glob(f"*{ending}")}
    both = [
        f"{path.name} ({seen[digest]})" for path in files if path.is_file() and (digest := file_sha256(path)) in seen
    ]
    if both:
        raise InputError(
            f"test images that are training images: {', '.join(both[:5])}",
            "test patients that nobody trains on",
            "remove them from imagesTs",
        )
    if absent or not ids:
        raise InputError(
            f"labelsTs without images: {', '.join(absent[:5]) or 'no label at all'}",
            "an image in imagesTs for every label of labelsTs",
            "restore the files",
        )
    return ids


def _same_settings(output_dir: Path, dataset_dir: Path, settings: ChainSettings) -> None:
    """Refuse to go on in a folder that another chain has worked in."""
    path = output_dir / "settings.json"
    now = json.loads(json.dumps({"dataset_dir": str(dataset_dir), **vars(settings)}))
    if path.is_file():
        refuse_changes(
            json.loads(path.read_text()),
            now,
            f"{output_dir} holds a run",
            "the same settings, to go on with it",
            "give another --output_dir, or remove the folder",
        )
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(
            f"{output_dir} is not empty and holds no run",
            "a new or empty folder",
            "give another --output_dir",
        )
    write_json(path, now)
