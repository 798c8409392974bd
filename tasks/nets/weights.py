"""Weights that somebody else saved, read without running what is in the file. Importing this loads no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_into", "read_weights"]

# Where training scripts keep the weights, best first: timm, like most, prefers the averaged ones.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
# What data-parallel and compiled models put before each name.
_WRAPPERS = ("module.", "_orig_mod.")
_WAY_OUT = "save its weights as safetensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"


def read_weights(file: Path) -> "dict[str, Tensor]":
    """Read the weights of a safetensors file, or of a torch or timm checkpoint.

    A checkpoint is a pickle: torch reads it with `weights_only`, which builds tensors and plain
    containers and calls nothing else; one more class is let through, `argparse.Namespace`, a bag of
    values in which timm keeps its arguments. Weights averaged in training (`state_dict_ema`) are preferred.

    Returns:
        Tensors by name, on the CPU, floats as float32.

    Raises:
        InputError: no such file, not a model's weights, or a pickle that would run code.
    """
    if not file.is_file():
        raise InputError(str(file), "no such file")
    with file.open("rb") as opened:
        start = opened.read(9)
    loaded = _safetensors(file) if start[8:9] == b"{" else _checkpoint(file, start)
    for name in _INSIDE:
        if isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    return {_plain(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in _tensors(file, loaded).items()}


def load_into(net: "nn.Module", weights: "Mapping[str, Tensor]", file: Path, *, without: Sequence[str] = ()) -> None:
    """Load weights into a net, which must have exactly these, apart from what lies under the names in `without`, which stays as it is.

    Raises:
        InputError: names or shapes differ; the first difference is named.
    """
    heads = tuple(f"{head}." for head in without)
    given, wanted = ({name: tensor for name, tensor in each.items() if not f"{name}.".startswith(heads)} for each in (weights, net.state_dict()))
    # A count that only training reads; older checkpoints lack it.
    given |= {name: tensor for name, tensor in wanted.items() if name.endswith("num_batches_tracked") and name not in given}
    hint = "net, side_px, channels and the number of classes must be those it was trained with"
    if missing := [name for name in wanted if name not in given]:
        raise InputError(str(file), f"lacks {len(missing)} of the net's {len(wanted)} tensors, '{missing[0]}' first", hint)
    if unknown := [name for name in given if name not in wanted]:
        raise InputError(str(file), f"has {len(unknown)} tensors that the net lacks, '{unknown[0]}' first", hint)
    if odd := [name for name in wanted if given[name].shape != wanted[name].shape]:
        problem = f"'{odd[0]}' has the shape {list(given[odd[0]].shape)}, the net's has {list(wanted[odd[0]].shape)}"
        raise InputError(str(file), problem, hint)
    net.load_state_dict(net.state_dict() | given)


def _safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise InputError(str(file), f"is a damaged safetensors file ({str(error).splitlines()[0]})") from error


def _checkpoint(file: Path, start: bytes) -> dict[str, Any]:
    import argparse
    import pickle
    import warnings

    import torch

    try:
        # torch warns of pickle protocols that it doesn't write itself; what it can't read it refuses.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    # Apart from UnpicklingError, what torch's zip reader and its unpickler raise on bytes that are no checkpoint.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, pickle.UnpicklingError) and start[:1] in (b"\x80", b"P"):
            raise InputError(str(file), "holds a pickle that could run code, and is not loaded", _WAY_OUT) from error
        raise InputError(str(file), "is neither safetensors nor a torch checkpoint", _WAY_OUT) from error
    if not isinstance(loaded, Mapping):
        raise InputError(str(file), f"holds a {type(loaded).__name__}, not weights by name", _WAY_OUT)
    return dict(loaded)


def _tensors(file: Path, loaded: Mapping[str, Any]) -> "dict[str, Tensor]":
    import torch

    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) < len(loaded):
        odd = next((str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)), "")
        raise InputError(str(file), f"'{odd}' is no tensor" if odd else "holds no weights", _WAY_OUT)
    return tensors


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
