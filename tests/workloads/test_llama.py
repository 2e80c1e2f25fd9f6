"""Llama held to transformers' own; grouped heads, rotary positions, tied output weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gpualloc.workloads import LlamaConfig
from gpualloc.workloads.llama import Llama

_CONFIG = LlamaConfig(num_layers=2, num_heads=4, num_kv_heads=2, width=32, mlp_width=48, vocab_size=19, rope_theta=500.0)
_NAMES = {
    "token_embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
    "attention": "self_attn",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


def transformers_name(name: str) -> str:
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        first, _, tail = rest.partition(".")
        return f"model.layers.{number}.{_NAMES[first]}.{tail}"
    first, _, tail = name.partition(".")
    return f"{_NAMES[first]}.{tail}"


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_are_those_of_transformers(tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Llama(replace(_CONFIG, tied_embeddings=tied))
    for parameter in ours.parameters():  # norms other than 1, and logits that differ
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    config = transformers.LlamaConfig(
        vocab_size=19,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
    )
    theirs = transformers.LlamaForCausalLM(config)
    missing, unexpected = theirs.load_state_dict({transformers_name(k): v for k, v in ours.state_dict().items()}, strict=False)
    assert (missing, unexpected) == ([], [])
    tokens = torch.randint(19, (2, 11))
    logits, their_logits = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    their_logits.square().mean().backward()
    gradient, their_gradient = ours.blocks[0].attention.k_proj.weight.grad, theirs.model.layers[0].self_attn.k_proj.weight.grad
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-3, atol=1e-4)


def test_only_the_past_is_seen() -> None:
    model = Llama(_CONFIG)
    tokens = torch.randint(19, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 19
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=-1).min() > 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_grouped_kernel_gives_what_repeated_heads_give(dtype: torch.dtype) -> None:
    model = Llama(replace(_CONFIG, width=256, mlp_width=512)).cuda()
    tokens = torch.randint(19, (2, 64), device="cuda")
    expected = model(tokens)
    with torch.autocast("cuda", dtype=dtype):
        found = model(tokens)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.02)
