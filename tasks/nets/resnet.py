"""ResNet-18. Apart from `networks`, because torchvision takes seconds to import and no other net needs it."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

__all__ = ["ResNet18"]


class ResNet18(ResNet):
    """torchvision's ResNet-18, weights by its names; below 64 px with the 3x3 first layer used on CIFAR."""

    def __init__(self, num_classes: int, channels: int, side_px: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        if side_px < 64:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the last layer sees, [B, D]."""
        out = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return torch.flatten(self.avgpool(out), 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, K]."""
        return self.fc(self.features(images_BCHW))
