"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2, width 1.0).

Written here because the core must not need torchvision. Names and shapes of the parameters, and their order, are those of
`torchvision.models.mobilenet_v2`, so its checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn

from gpualloc.workloads.parts import Part

# (expansion, output channels, blocks, stride of the first block), from table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280
_DROPOUT = 0.2


def _conv_bn_relu6(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class _InvertedResidual(nn.Module):
    """Expand 1x1, filter 3x3 per channel, project 1x1; the input is added where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        projected_norm = nn.BatchNorm2d(out_channels)
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu6(in_channels, hidden, kernel_size=1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, kernel_size=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, kernel_size=1, bias=False),
            projected_norm,
        ]
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == 1 and in_channels == out_channels
        if self.adds_input:  # the branch starts silent (Goyal et al. 2017, arXiv:1706.02677, 5.1): small batches learn in tens of steps
            nn.init.zeros_(projected_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds_input else out


class MobileNetV2(nn.Module):
    """[B, 3, H, W] images, H and W of 32 or more -> [B, num_classes] logits."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        channels = _STEM_CHANNELS
        features: list[nn.Module] = [_conv_bn_relu6(3, channels, kernel_size=3, stride=2)]
        for expansion, out_channels, num_blocks, first_stride in _STAGES:
            for block in range(num_blocks):
                stride = first_stride if block == 0 else 1
                features.append(_InvertedResidual(channels, out_channels, expansion=expansion, stride=stride))
                channels = out_channels
        features.append(_conv_bn_relu6(channels, _LAST_CHANNELS, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(_LAST_CHANNELS, num_classes))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))

    def predict(self, x: Tensor) -> Tensor:
        """[B, 1280, h, w] features -> [B, num_classes] logits."""
        # The mean over h and w is adaptive_avg_pool2d(1) with a deterministic backward on CUDA.
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits

    def parts(self) -> list[nn.Module]:
        """Modules that are the model when applied one after the other."""
        return [*self.features, Part(self.predict, self.classifier)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
