"""`nnUNetTrainerSynthAug`: stock nnU-Net whose training batches hold synthetic cases."""

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from .dataset import EpochPlans, Ledger, MixedDataset, OpenCases, WritableCases, planned
from .errors import InputError
from .import_pool import read_import
from .kept_identities import kept_identities
from .leakage import check_voxels
from .mixing import check_shares, few_samples_words, share_at, transplant_share_at
from .precision import Float32Loss, autocast_dtype, memory_format
from .preprocessed import PreprocessedDataset, check_leakage, check_space, environment_folder, resolve_configuration
from .seen import check_pretrained, check_seen, check_sources, pretrained_file, read_seen, write_seen
from .settings import parse_settings
from .transplant.cases import TransplantCases
from .transplant.folds import bank_folder, read_fold
from .transplant.loader import loading_transplants

EPOCHS_FILE = "synthaug_epochs.jsonl"


class SynthAugMixin(nnUNetTrainer):
    """Replaces training cases by synthetic ones as the configuration's `synthaug` block says.

    Put it before any trainer of nnU-Net that keeps the stock `get_dataloaders`. Validation never sees a
    synthetic case, and the pool is opened for training alone.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net reads this signature)
    ):
        environment_folder("nnUNet_preprocessed")
        environment_folder("nnUNet_results", must_exist=False)  # nnU-Net makes it
        block = resolve_configuration(plans, configuration).get("synthaug")
        if block is None:
            raise InputError(
                f"the configuration {configuration}, which has no synthaug block",
                "a configuration that add-pool or transplant made, such as 2d_syn50",
                "run add-pool or transplant, or train with -tr nnUNetTrainer",
            )
        settings = parse_settings(block)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.device.type == "cpu" and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
            torch.set_num_threads(int(threads))  # nnUNetv2_train takes every core, also of what runs beside it
        self.synthaug_settings = settings
        for name in (
            "num_epochs",
            "num_iterations_per_epoch",
            "num_val_iterations_per_epoch",
            "initial_lr",
            "weight_decay",
        ):
            value = getattr(settings.training, name)
            if value is not None:
                setattr(self, name, value)
        if settings.training.num_epochs is not None:
            # A short training that is interrupted should not lose all of it.
            self.save_every = min(50, max(1, settings.training.num_epochs // 10))

    def initialize(self) -> None:
        """Build network and optimiser; with a training seed the same weights for every configuration."""
        self._seed()
        super().initialize()
        if self._autocast_dtype is not None:
            self.network.to(memory_format=memory_format(len(self.configuration_manager.patch_size), self.device))

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        return loss if self._autocast_dtype is None else Float32Loss(loss)

    def train_step(self, batch: dict) -> dict:
        """Make nnU-Net's step; on a CPU in bfloat16 where the settings ask for it."""
        if (dtype := self._autocast_dtype) is None:
            return super().train_step(batch)  # around a trainer's own autocast another would keep its cast weights
        with torch.autocast("cpu", dtype):
            return super().train_step(batch)

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
        on_cpu = self.device.type == "cpu"
        return autocast_dtype(self.synthaug_settings.training.autocast, self.device) if on_cpu else None

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the optimiser that the settings ask for, otherwise that of the trainer, whose the arguments are."""
        wanted = self.synthaug_settings.training.optimizer
        if wanted is None:
            return super().configure_optimizers(*args, **kwargs)
        if self.optimizer is not None:  # trainers with a warm-up ask again
            return self.optimizer, self.lr_scheduler
        if wanted == "SGD":
            return nnUNetTrainer.configure_optimizers(self)
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return the training cases mixed with the pool's and with transplants, and the real validation cases."""
        # Not before: trainers set their number of epochs after this one's __init__.
        self.synthaug_settings.check_length(self.num_epochs)
        check_shares(self.synthaug_settings, self.num_epochs)
        train, val = super().get_tr_and_val_datasets()
        if self.dataset_class is nnUNetDatasetNumpy:  # whose arrays nnU-Net writes into: each is loaded anew
            train, val = WritableCases(train), WritableCases(val)
        else:
            train = OpenCases(train)
        dataset = PreprocessedDataset(Path(self.preprocessed_dataset_folder_base), self.dataset_json)
        pool, bank = self._pool_record(dataset), self._bank_record(dataset)
        records = {"pool": pool, "transplant": bank}
        sources = {name: record for name, record in records.items() if record is not None}
        for record in sources.values():
            check_leakage(record["seen"], train.identifiers, val.identifiers, self.fold)
        if self.local_rank == 0:
            self._check_leakage(dataset, sources, train.identifiers, val.identifiers)
        self.synthaug_plans = EpochPlans(
            self.synthaug_settings,
            tuple(pool["samples"]) if pool is not None else (),
            self.num_epochs,
            self.num_iterations_per_epoch,
            int(self.batch_size),
            rank=self.local_rank,
            world_size=dist.get_world_size() if self.is_ddp else 1,
        )
        self.synthaug_ledger = Ledger(self.current_epoch, self.num_epochs, self.num_iterations_per_epoch)
        synthetic = None if pool is None else self._pool_cases(dataset, pool)
        transplants = None if bank is None else self._transplant_cases(dataset, bank, train)
        return MixedDataset(train, synthetic, self.synthaug_plans, self.synthaug_ledger, transplants), val

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, which take patches of a transplant around its lesion."""
        behind = super().get_dataloaders
        if self.synthaug_settings.transplant is not None and behind.__func__ is not nnUNetTrainer.get_dataloaders:
            raise InputError(
                f"transplants under {type(self).__name__}, which makes loaders of its own",
                "a trainer with the get_dataloaders of nnUNetTrainer: others do not know where a lesion lies",
                "train with -tr nnUNetTrainerSynthAug",
            )
        with loading_transplants():
            return behind()

    def _pool_record(self, dataset: PreprocessedDataset) -> dict[str, Any] | None:
        """Return the record of the imported pool, if there is one and it fits the configuration."""
        settings, configuration = self.synthaug_settings, self.configuration_manager.configuration
        if settings.pool is None:
            return None
        record = read_import(dataset, settings.pool, self.fold)
        if record["space"]["kind"] != "raw":
            check_space(record["space"], record["dimension"], self.plans_manager.plans, configuration)
        if record["data_identifier"] != configuration["data_identifier"]:
            raise InputError(
                f"the pool {settings.pool}, imported for {record['data_identifier']}",
                f"a pool imported for {configuration['data_identifier']}",
                "run add-pool for this configuration under another pool_name",
            )
        return record

    def _bank_record(self, dataset: PreprocessedDataset) -> dict[str, Any] | None:
        """Return the record of the fold's lesions, if there are transplants and they fit the configuration."""
        transplant, configuration = self.synthaug_settings.transplant, self.configuration_manager.configuration
        if transplant is None:
            return None
        record = read_fold(dataset, configuration["data_identifier"], self.fold, transplant.labels)
        check_space(record["space"], record["dimension"], self.plans_manager.plans, configuration)
        return record

    def _pool_cases(self, dataset: PreprocessedDataset, record: dict[str, Any]) -> Any:
        settings = self.synthaug_settings
        folder = str(dataset.pool_folder(str(settings.pool), self.fold))
        self.print_to_log_file(
            f"synthetic cases: {len(record['samples'])} in {folder}, "
            f"share {share_at(settings, self.current_epoch, self.num_epochs):g} ({settings.schedule})"
        )
        if (warning := few_samples_words(settings, len(record["samples"]))) is not None:
            self.print_to_log_file(warning)
        return nnUNetDatasetBlosc2(folder, list(record["samples"]))

    def _transplant_cases(self, dataset: PreprocessedDataset, record: dict[str, Any], train: Any) -> TransplantCases:
        settings = self.synthaug_settings
        assert settings.transplant is not None
        configuration, labels = self.configuration_manager, self.label_manager
        classes = [*(labels.foreground_regions if labels.has_regions else labels.foreground_labels)]
        if labels.has_ignore_label:
            classes.append((-1, *labels.all_labels))
        identifier = configuration.configuration["data_identifier"]
        folder = bank_folder(dataset, identifier, self.fold, settings.transplant.labels)
        self.print_to_log_file(
            f"transplants: {record['fitting']} lesions of {len(record['seen'])} cases in {folder}, share "
            f"{transplant_share_at(settings, self.current_epoch, self.num_epochs):g} ({settings.transplant.schedule})"
        )
        return TransplantCases(
            folder,
            list(record["seen"]),
            train,
            configuration.patch_size,
            [tuple(map(int, of)) if isinstance(of, (tuple, list)) else int(of) for of in classes],
            settings.transplant.decoys,
            settings.seed,
            self.local_rank,
        )

    def _check_leakage(
        self,
        dataset: PreprocessedDataset,
        sources: Mapping[str, dict[str, Any]],
        train: Iterable[str],
        val: Iterable[str],
    ) -> None:
        """Compare the voxels of the cases with those of pool and lesions, and record what this network sees.

        Args:
            dataset: of the cases.
            sources: the records of pool and lesions.
            train, val: ids of the fold's cases.
        """
        hashes, output = {name: record["sha256"] for name, record in sources.items()}, Path(self.output_folder)
        if self.current_epoch > 0:
            check_sources(output, hashes)
        learnt_from = [record["seen"] for record in sources.values()]
        reader = self.dataset_class(self.preprocessed_dataset_folder)
        held_out = {*val} - {*train}
        learnt = {*train, *(name for seen in learnt_from for name in seen)}
        absent = sorted({*learnt, *held_out} - {*reader.identifiers})
        if absent:
            raise InputError(
                f"cases that are not in {self.preprocessed_dataset_folder}: {', '.join(absent[:5])}",
                "all cases of the split, and all that the generator of the pool saw",
                "restore them, or run nnUNetv2_preprocess again",
            )
        self.print_to_log_file(f"comparing {len(learnt | held_out)} cases with those that the generator saw")
        identifier = self.configuration_manager.configuration["data_identifier"]
        present = kept_identities(dataset, identifier, reader.load_case, learnt | held_out)
        for seen in learnt_from:
            check_voxels(seen, present, held_out, self.fold)
        validated = {name: present[name] for name in held_out}
        before: list[dict[str, Any]] = []
        if (file := pretrained_file(self.network)) is not None:
            before, warning = check_pretrained(file, dataset, validated, self.fold)
            if warning is not None:
                self.print_to_log_file(warning)
        elif self.current_epoch > 0:
            before = read_seen(output) or []
            check_seen(before, dataset, validated, self.fold, f"the network of {output}")
        write_seen(output, dataset, {name: present[name] for name in learnt}, before, hashes)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and drop what an interrupted run logged of epochs that are trained again."""
        super().on_train_start()
        self._rewrite_epochs(lambda record: record["epoch"] < self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Start an epoch; with a training seed its random numbers depend on the epoch alone."""
        self._seed(self.local_rank, self.current_epoch)
        super().on_train_epoch_start()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log what was loaded for the epoch: one line in synthaug_epochs.jsonl, one in nnU-Net's log."""
        super().on_train_epoch_end(train_outputs)
        expected = planned(self.synthaug_plans, self.current_epoch)
        loaded = self.synthaug_ledger.loaded(self.current_epoch)
        # The last batch of an epoch may still be in a worker when a batch of the next one overtook it.
        deadline = monotonic() + 10.0
        while loaded != expected and monotonic() < deadline:
            sleep(0.01)
            loaded = self.synthaug_ledger.loaded(self.current_epoch)
        total = loaded.real + loaded.synthetic + loaded.transplants
        record: dict[str, Any] = {
            "epoch": self.current_epoch,
            "rank": self.local_rank,
            "planned_share": share_at(self.synthaug_settings, self.current_epoch, self.num_epochs),
            "share": loaded.synthetic / max(total, 1),
            "real": loaded.real,
            "synthetic": loaded.synthetic,
            "draws": f"{loaded.draws:016x}",
            "as_planned": loaded == expected,
        }
        if self.synthaug_settings.transplant is not None:
            record |= {
                "planned_transplant_share": transplant_share_at(
                    self.synthaug_settings, self.current_epoch, self.num_epochs
                ),
                "transplant_share": loaded.transplants / max(total, 1),
                "transplants": loaded.transplants,
            }
            self.print_to_log_file(
                f"transplant share {record['transplant_share']:.4f} ({loaded.transplants} of {total} samples)"
            )
        with open(self._epochs_file, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.print_to_log_file(
            f"synthetic share {record['share']:.4f} ({loaded.synthetic} of {total} samples, draws {record['draws']})"
        )
        if loaded != expected:
            self.print_to_log_file(f"WARNING: the plan of this epoch was {expected}, loaded was {loaded}")

    @property
    def _epochs_file(self) -> Path:
        suffix = f"_rank{self.local_rank}" if self.local_rank else ""
        return Path(self.output_folder) / EPOCHS_FILE.replace(".jsonl", f"{suffix}.jsonl")

    def _rewrite_epochs(self, keep: Callable[[dict], bool]) -> None:
        kept = [record for record in read_epochs(self._epochs_file) if keep(record)]
        temporary = self._epochs_file.with_name(self._epochs_file.name + ".partial")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, self._epochs_file)

    def _seed(self, *place: int) -> None:
        seed = self.synthaug_settings.training.seed
        if seed is not None:
            state = int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])
            random.seed(state)
            np.random.seed(state)  # noqa: NPY002 (nnU-Net draws from the global generator)
            torch.manual_seed(state)


class nnUNetTrainerSynthAug(SynthAugMixin):
    """Stock nnU-Net with synthetic training cases; see `SynthAugMixin`."""


def read_epochs(file: str | Path) -> list[dict[str, Any]]:
    """Return the records of a synthaug_epochs.jsonl; a line cut short by a kill is left out."""
    records = []
    for line in Path(file).read_text().splitlines() if Path(file).is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
