"""Weights go into a network whole, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ..runtime.errors import InputError
from ..runtime.running import checkpoint_being_loaded

Network = TypeVar("Network", bound=nn.Module)


def whole_weights(network: Network) -> Network:
    """Let `monai.bundle.load` raise `InputError` where a checkpoint fits a network in part.

    It copies what has the same name and shape, and leaves the rest as it was made, at random, without a word.
    """
    network.register_load_state_dict_pre_hook(_refuse_partial)
    return network


def _refuse_partial(network: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
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
