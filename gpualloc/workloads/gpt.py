"""A GPT-2-like decoder: learned positions, pre-norm blocks, GELU, output weights tied to the token embedding.

Shapes and biases follow GPT-2 (Radford et al. 2019): 124,439,808 parameters at its small size. There is no dropout, so a
step depends on nothing but weights and tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpualloc.workloads.models import GptConfig
from gpualloc.workloads.parts import Part

_INIT_STD = 0.02  # of GPT-2


class _Attention(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        # Rows of qkv lie head by head, so that a tensor-parallel rank, which has some of them, has whole heads.
        heads = self.qkv(x).view(batch, length, -1, 3, self.head_width)
        q, k, v = heads.permute(3, 0, 2, 1, 4).unbind()  # each [B, num_heads of this rank, T, head_width]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = _Attention(config)
        self.norm_mlp = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        mixed: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)), approximate="tanh"))
        return x + mixed


class Gpt(nn.Module):
    """[B, T] int64 tokens, T up to config.max_sequence_length -> [B, T, vocab_size] logits for the token after each."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_sequence_length, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.apply(_initialise)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        # 2 * num_layers branches add up in the residual stream; GPT-2 keeps its variance that of one.
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp_out.weight")):
                nn.init.normal_(parameter, std=_INIT_STD / math.sqrt(2 * config.num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.predict(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] tokens -> [B, T, width] features that the first block takes."""
        embedded: Tensor = self.token_embedding(tokens) + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        return embedded

    def predict(self, x: Tensor) -> Tensor:
        """[B, T, width] features of the last block -> [B, T, vocab_size] logits."""
        logits: Tensor = self.head(self.norm(x))
        return logits

    def parts(self) -> list[nn.Module]:
        """Modules that are the model when applied one after the other."""
        embed = Part(self.embed, self.token_embedding, self.position_embedding)
        return [embed, *self.blocks, Part(self.predict, self.norm, self.head)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
