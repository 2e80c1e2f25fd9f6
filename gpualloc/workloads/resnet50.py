"""ResNet-50 (He et al. 2015, arXiv:1512.03385, table 1), with the stride in the 3x3 convolution, as it is usually trained ("v1.5").

Names and shapes of the parameters, and their order, are those of `torchvision.models.resnet50`, so its checkpoints load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # (inner channels, blocks, stride of the first block)
_EXPANSION = 4


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, added to the input."""

    def __init__(self, in_channels: int, inner: int, *, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * inner
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet50(nn.Module):
    """[B, 3, H, W] images, H and W of 32 or more -> [B, num_classes] logits."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        channels = 64
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for inner, num_blocks, first_stride in _STAGES:
            blocks = []
            for block in range(num_blocks):
                blocks.append(_Bottleneck(channels, inner, stride=first_stride if block == 0 else 1))
                channels = _EXPANSION * inner
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, _Bottleneck):  # the branch starts silent (Goyal et al. 2017, arXiv:1706.02677, 5.1)
        nn.init.zeros_(module.bn3.weight)
