"""The networks that a recipe may name, and how one is made. Importing this loads no torch."""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from stillroom.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NetName", "build", "check_net", "feature_size", "head_names", "refuse_statistics"]


class _Net(NamedTuple):
    """A net of ours: default width, smallest side, and features by (width, side_px)."""

    width: int
    min_side_px: int
    feature_size: Callable[[int, int], int]


_NETS = {
    "cnn": _Net(16, 4, lambda width, side_px: 2 * width),
    "convnet3": _Net(128, 8, lambda width, side_px: width * (side_px // 8) ** 2),
    "mlp": _Net(128, 1, lambda width, side_px: width),
    "resnet18": _Net(64, 8, lambda width, side_px: 8 * width),
}
_TIMM = "timm/"


def check_net(net: str) -> str:
    """Refuse a name that can't be a net's, with the nearest that is; timm's own names are judged by `build`."""
    name, _, width = net.partition(":")
    if name.startswith(_TIMM):
        return net
    if name not in _NETS:
        near = difflib.get_close_matches(name, _NETS, 1)
        raise ValueError(f"unknown net '{net}'" + (f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(_NETS)} and {_TIMM}<name>"))
    if ":" in net and not (width.isascii() and width.isdigit() and 0 < int(width) <= 4096):
        raise ValueError(f"net '{net}': the width is a whole number, as in 'cnn:32'")
    return net


NetName = Annotated[str, AfterValidator(check_net)]


def build(net: str, *, num_classes: int, channels: int, side_px: int) -> "nn.Module":
    """Make an untrained net for images of one size.

    The weights come from torch's global generator: seed it inside `torch.random.fork_rng()`, as
    `training.seeded_net` does. No net here draws anything while it trains.

    Args:
        net: `cnn`, `convnet3`, `mlp`, `resnet18` (each with a width, as in `cnn:32`), or `timm/<name>`.
        num_classes: logits; 0 gives a timm net without its last layer.

    Returns:
        A module from float32 [B, C, side, side] to logits [B, K]; `features_of` gives what its last layer sees.

    Raises:
        InputError: no such net, or none for this size.
    """
    name, width = _parsed(net)
    if name.startswith(_TIMM):
        return _timm_net(name.removeprefix(_TIMM), num_classes, channels, side_px)
    _refuse_small(net, name, side_px)
    if name == "resnet18":
        from tasks.nets.resnet import ResNet18

        return ResNet18(width, num_classes, channels, side_px)
    from tasks.nets import networks

    made_by = {"cnn": networks.Cnn, "convnet3": networks.ConvNet3, "mlp": networks.Mlp}
    return made_by[name](width, num_classes, channels, side_px)


def feature_size(net: str, *, channels: int, side_px: int) -> int:
    """How many features a net has; of our own nets without loading torch, of timm's by building it without weights.

    Raises:
        InputError: no such net, or none for this size.
    """
    name, width = _parsed(net)
    if not name.startswith(_TIMM):
        _refuse_small(net, name, side_px)
        return _NETS[name].feature_size(width, side_px)
    import torch

    with torch.device("meta"):
        headless = build(net, num_classes=0, channels=channels, side_px=side_px).eval()
        return headless(torch.empty(1, channels, side_px, side_px)).shape[1]


def refuse_statistics(net: "nn.Module", name: str) -> None:
    """Refuse a net with running statistics (batch norm) where only weights can be matched.

    Raises:
        InputError: it has some.
    """
    if next(net.buffers(), None) is not None:
        raise InputError("net", f"{name} keeps running statistics, which can't be matched", "take convnet3 or mlp")


def head_names(net: str) -> tuple[str, ...]:
    """What the last layers of a net are called among its weights."""
    if not net.startswith(_TIMM):
        return ("fc",) if net.partition(":")[0] == "resnet18" else ("head",)
    import timm

    cfg = timm.get_pretrained_cfg(net.removeprefix(_TIMM))
    named = getattr(cfg, "classifier", None) or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _refuse_small(net: str, name: str, side_px: int) -> None:
    if side_px < _NETS[name].min_side_px:
        raise InputError(f"net '{net}'", f"images of {side_px} px are too small for it", f"it takes {_NETS[name].min_side_px} px or more")


def _own_size(net: str) -> str:
    """A hint at the size that a timm net was made for."""
    import timm

    cfg = timm.get_pretrained_cfg(net.removeprefix(_TIMM))
    return f"timm made it for {cfg.input_size[-1]} px" if cfg else ""


def _parsed(net: str) -> tuple[str, int]:
    try:
        name, _, width = check_net(net).partition(":")
    except ValueError as error:
        raise InputError("net", str(error)) from None
    return (net, 0) if name.startswith(_TIMM) else (name, int(width or _NETS[name].width))


def _timm_net(name: str, num_classes: int, channels: int, side_px: int) -> "nn.Module":
    import timm
    import torch

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3] or difflib.get_close_matches(name, timm.list_models(), 3)
        raise InputError(f"net '{_TIMM}{name}'", "timm has no such model", f"near it: {', '.join(near)}" if near else "")
    # Transformers are built for one side; the others take any and refuse the argument.
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    more: dict[str, Any] = {"img_size": side_px} if fixed else {}
    net = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **more).eval()
    # Whether a size will do, timm knows no other way: too many pools, or a fixed number of positions.
    try:
        with torch.no_grad():
            net(torch.zeros(1, channels, side_px, side_px))
    except RuntimeError as error:
        raise InputError(f"net '{_TIMM}{name}'", f"images of {side_px} px don't pass through it", _own_size(name)) from error
    return net.train()
