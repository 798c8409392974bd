"""The nets of our own. Importing this loads torch: go through `zoo.build`.

Each is a `torch.nn.Module` with `features` [B, D], what the last layer sees, beside `forward`.
"""

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Cnn", "ConvNet3", "Mlp", "features_of", "head_of"]

# B = images, C = channels, H W = height and width, D = features, K = classes


def features_of(net: nn.Module, images_BCHW: Tensor) -> Tensor:
    """What the last layer of any net of the zoo, or of an EfficientNet-Lite, sees, [B, D]."""
    if hasattr(net, "forward_features"):  # timm's
        return net.forward_head(net.forward_features(images_BCHW), pre_logits=True)  # type: ignore[operator]
    if hasattr(net, "extract_features"):  # EfficientNet-Lite
        return net.extract_features(images_BCHW).mean((2, 3))  # type: ignore[operator]
    return net.features(images_BCHW)  # type: ignore[operator]


def head_of(net: nn.Module) -> nn.Module:
    """The last layer of any net of the zoo."""
    if hasattr(net, "get_classifier"):  # timm's
        return net.get_classifier()  # type: ignore[operator]
    return net.fc if hasattr(net, "fc") else net.head  # type: ignore[return-value]


class Cnn(nn.Module):
    """The student: three convolutions, about 11 k parameters at width 16. Any side from 4 px."""

    def __init__(self, width: int, num_classes: int, channels: int, side_px: int) -> None:
        super().__init__()
        widths = (width, width * 3 // 2, width * 2)
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in zip((channels, *widths), widths, strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in widths)
        # 28 and 32 px end as 3 and 4; 8 px end as 2, since a third pool would leave one position.
        self.pools = (2, 2, 2) if side_px >= 16 else (2, 1, 2)
        self.head = nn.Linear(widths[-1], num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the last layer sees, [B, D]."""
        out = images_BCHW
        for conv, norm, pool in zip(self.convs, self.norms, self.pools, strict=True):
            out = functional.relu(norm(conv(out)))
            if pool > 1:
                out = functional.max_pool2d(out, pool)
        return out.mean((2, 3))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.head(self.features(images_BCHW))


class ConvNet3(nn.Module):
    """ConvNet-D3 of the distillation literature: three blocks of convolution, instance norm, ReLU, average pool."""

    def __init__(self, width: int, num_classes: int, channels: int, side_px: int) -> None:
        super().__init__()
        blocks = []
        for before in (channels, width, width):
            # GroupNorm with a channel a group is the instance norm of the papers, and faster in training.
            blocks += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(width * (side_px // 8) ** 2, num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the last layer sees, [B, D]."""
        return self.body(images_BCHW).flatten(1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.head(self.features(images_BCHW))


class Mlp(nn.Module):
    """Two hidden layers over the pixels."""

    def __init__(self, width: int, num_classes: int, channels: int, side_px: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(channels * side_px**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the last layer sees, [B, D]."""
        return self.body(images_BCHW.flatten(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.head(self.features(images_BCHW))
