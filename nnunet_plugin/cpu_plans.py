"""A plans file with a smaller network and batch, for training on a CPU with the same preprocessed data."""

from copy import deepcopy
from pathlib import Path

from .errors import InputError
from .import_pool import check_plans_name
from .options import checked
from .preprocessed import CPU_PLANS_MARK, find_dataset, read_json, read_plans, with_inherited, write_json


@checked
def write_cpu_plans(
    dataset: int | str,
    plans: str = "nnUNetPlans",
    plans_out: str = "nnUNetPlansCPU",
    max_features: int = 128,
    batch_size: int = 16,
    overwrite: bool = False,
) -> Path:
    """Write plans with a smaller network and batch, to train on a CPU without preprocessing again.

    Every configuration keeps its data, patch size and spacing. Returns the plans file.

    Args:
        dataset: Number or name of the data set, such as 501.
        plans: The plans to start from.
        plans_out: Name of the plans to write.
        max_features: Feature maps of the deepest stages; the first stage has an eighth of it.
        batch_size: Batch size in 2d; in 3D an eighth of it, at least 2. Never more than the plans have.
        overwrite: Replace plans of the same name that this command wrote.

    Example:
        synthaug cpu-plans 501
    """
    for name, value, least in (("max_features", max_features, 8), ("batch_size", batch_size, 2)):
        if value < least:
            raise InputError(f"{name} = {value!r}", f"a whole number from {least}", f"correct {name}")
    check_plans_name(plans, plans_out)
    found = find_dataset(dataset)
    small = {**deepcopy(read_plans(found, plans)), "plans_name": plans_out, CPU_PLANS_MARK: plans_out}
    for name, configuration in small["configurations"].items():
        inherits = "inherits_from" in configuration  # what it does not say itself
        features = configuration.get("architecture", {}).get("arch_kwargs", {}).get("features_per_stage")
        if features is not None:
            first = max_features // 8
            features[:] = [min(first * 2**stage, max_features) for stage in range(len(features))]
        elif not inherits or "architecture" in configuration:
            raise InputError(
                f"the configuration {name} of {plans}, whose architecture has no features_per_stage",
                "plans of nnU-Net's U-Nets",
                "start from other plans",
            )
        if not inherits or "batch_size" in configuration:
            patch_size = configuration.get("patch_size") or with_inherited(small, name)["patch_size"]
            batch = batch_size if len(patch_size) == 2 else max(2, batch_size // 8)
            configuration["batch_size"] = min(batch, configuration["batch_size"])
    file = found.folder / f"{plans_out}.json"
    existing = read_json(file, "choose another plans_out") if file.is_file() else {}
    if existing and {**existing, CPU_PLANS_MARK: plans_out} != small:
        if not overwrite:
            raise InputError(f"other plans in {file}", "the same plans, or a name that is free", "overwrite, or rename")
        if existing.get(CPU_PLANS_MARK) != plans_out:
            raise InputError(
                f"{file}, which cpu-plans did not write", "plans of cpu-plans, or a name that is free", "rename"
            )
    write_json(file, small)
    return file
