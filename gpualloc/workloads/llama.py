"""A Llama-like decoder (Touvron et al. 2023, arXiv:2302.13971, and Llama 3): RMSNorm, rotary positions, SwiGLU, grouped keys and values.

The arithmetic is that of `transformers.LlamaForCausalLM`, to which a test holds it, without the scaling of rotary frequencies that
Llama 3.1 and later use beyond 8192 tokens. There is no dropout and no bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpualloc.workloads.models import LlamaConfig
from gpualloc.workloads.parts import Part

_INIT_STD = 0.02
_NORM_EPS = 1e-5


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.num_heads
        self.group_size = config.num_heads // config.num_kv_heads  # query heads that share keys and values
        kv_width = config.num_kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        # The number of heads follows from the projections: under tensor parallelism a rank has its share of them.
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotate(q, cosines, sines), _rotate(k, cosines, sines)
        has_grouped_kernel = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)  # elsewhere enable_gqa means T x T scores in memory
        if not has_grouped_kernel:
            k, v = k.repeat_interleave(self.group_size, dim=1), v.repeat_interleave(self.group_size, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=has_grouped_kernel)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.attention = _Attention(config)
        self.norm_mlp = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x), cosines, sines)
        normed = self.norm_mlp(x)
        mixed: Tensor = self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x + mixed


class Llama(nn.Module):
    """[B, T] int64 tokens -> [B, T, vocab_size] logits for the token after each."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.num_heads
        self.rope_theta = config.rope_theta
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=_NORM_EPS)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.token_embedding.weight
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens)
        cosines, sines = self.rotations(x)
        for block in self.blocks:
            x = block(x, cosines, sines)
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits

    def parts(self) -> list[nn.Module]:
        """Modules that are the model when applied one after the other; each block makes its rotations itself."""
        blocks = (Part(self._rotated(block), block) for block in self.blocks)
        return [self.token_embedding, *blocks, Part(self.predict, self.norm, self.head)]

    def _rotated(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: block(x, *self.rotations(x))

    def rotations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, head_width] of the angles position * rope_theta ** (-2 i / head_width), in the dtype of x [B, T, width]."""
        exponents = torch.arange(0, self.head_width, 2, device=x.device, dtype=torch.float32) / self.head_width
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        angles = torch.outer(positions, self.rope_theta**-exponents).repeat(1, 2)  # both halves of a head turn alike
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns feature i of a head together with feature i + head_width / 2."""
    first, second = x.chunk(2, dim=-1)
    # The tables may be wider than what autocast made of x.
    return (x * cosines + torch.cat([-second, first], dim=-1) * sines).to(x.dtype)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
