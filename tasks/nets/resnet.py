"""ResNet-18. Apart from `networks`, because torchvision takes seconds to import and no other net needs it."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

__all__ = ["ResNet18"]

WIDTH = 64


class ResNet18(ResNet):
    """torchvision's ResNet-18, weights by its names; below 64 px with the 3x3 first layer used on CIFAR.

    At another width than torchvision's 64 its four layers have `width` channels, twice, four and eight times as many.
    """

    def __init__(self, width: int, num_classes: int, channels: int, side_px: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        if side_px < 64:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif channels != 3 or width != WIDTH:
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        if width != WIDTH:
            self.inplanes = width
            self.bn1 = nn.BatchNorm2d(width)
            self.layer1, *deeper = (self._make_layer(BasicBlock, width << depth, 2, stride=1 + (depth > 0)) for depth in range(4))
            self.layer2, self.layer3, self.layer4 = deeper
            self.fc = nn.Linear(8 * width, num_classes)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the last layer sees, [B, D]."""
        out = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return torch.flatten(self.avgpool(out), 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.fc(self.features(images_BCHW))
