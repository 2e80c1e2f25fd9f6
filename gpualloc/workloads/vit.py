"""A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929): patches, a class token, learned positions, pre-norm blocks, GELU.

ViT-B/16 has 86,567,656 parameters at 224 px and 1000 classes. There is no dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpualloc.workloads.models import VitConfig

_INIT_STD = 0.02


class _Attention(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.num_heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.o_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        # The number of heads follows from the projections: under tensor parallelism a rank has its share of them.
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = _Attention(config)
        self.norm_mlp = nn.LayerNorm(config.width, eps=1e-6)
        self.up_proj = nn.Linear(config.width, 4 * config.width)
        self.down_proj = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        mixed: Tensor = self.down_proj(F.gelu(self.up_proj(self.norm_mlp(x))))
        return x + mixed


class VisionTransformer(nn.Module):
    """[B, 3, S, S] images of S = image_size_px -> [B, num_classes] logits. What S has beyond whole patches is not seen."""

    def __init__(self, config: VitConfig, *, image_size_px: int, num_classes: int) -> None:
        super().__init__()
        num_patches = (image_size_px // config.patch_size_px) ** 2
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size_px, config.patch_size_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + num_patches, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, num_classes)
        nn.init.normal_(self.position_embedding, std=_INIT_STD)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)  # [B, number of patches, width]
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=_INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
