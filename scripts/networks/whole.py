"""Weights go into a network whole and finite, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..runtime.errors import InputError
from ..runtime.running import checkpoint_being_loaded

Network = TypeVar("Network", bound=nn.Module)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file, on the CPU, by name.

    Raises:
        InputError: the file holds something else, or numbers that are not finite.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := [name for name, value in state.items() if not isinstance(value, Tensor)]:
            raise TypeError(f"{wrong[0]} is no tensor")
    except Exception as error:  # what loading raises on a foreign file is anyone's guess
        raise InputError(
            f"{path} cannot be loaded ({type(error).__name__}: {str(error)[:200]})",
            "a network's state dict as a training leaves it: tensors by name",
            "restore the models folder, or train again",
        ) from error
    _refuse_broken(state, str(path))
    return state


def whole_weights(network: Network) -> Network:
    """Let a network raise `InputError` for weights that are not finite, and where `monai.bundle.load` fits it in part.

    MONAI copies what has the same name and shape, and leaves the rest as it was made, at random, without a word.
    """
    network.register_load_state_dict_pre_hook(_refuse_what_does_not_fit)
    return network


def _refuse_broken(state: Mapping[str, Any], what: str) -> None:
    for name, value in state.items():
        inexact = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        if inexact and not value.is_meta and not value.isfinite().all():
            raise InputError(
                f"{what} with values in {name} that are not finite",
                "weights of a training that ended well",
                "restore the models folder, or train again with a lower learning_rate",
            )


def _refuse_what_does_not_fit(network: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    _refuse_broken(state, "weights")
    checkpoint = checkpoint_being_loaded()
    if checkpoint is None:
        return
    own = {name: value for name, value in network.state_dict().items() if value.numel()}
    left = [name for name, value in own.items() if _is_same_memory(state.get(prefix + name), value)]
    if left:
        raise InputError(
            f"{checkpoint}, which has no weights of the right shape for {len(left)} of {len(own)} variables of the "
            f"network (such as {left[0]}, {tuple(own[left[0]].shape)})",
            "the network that was trained: its channels, size and settings (see provenance.json beside the weights)",
            "give the settings of the training as net_override, or build the network and give it as model",
        )


def _is_same_memory(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and not own.is_meta and value.data_ptr() == own.data_ptr()
