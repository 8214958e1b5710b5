"""Small models of the real architectures, with random weights, for the tests of gradient norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.measure.cases import VOCABULARY, random_examples

PADDING = int(random_examples(1)[0].input_ids[0])
"""A token of the examples, whose row an embedding with this ``padding_idx`` gives no gradient."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": PADDING,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _SIZES | {"attention_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _SIZES),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _SIZES),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, _SIZES | {"sliding_window": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, _SIZES | {"sliding_window": 8}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT2),
    "mixtral": (MixtralForCausalLM, MixtralConfig, _SIZES | {"num_local_experts": 4}),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
COVERED = [name for name in FAMILIES if name not in ("mixtral", "qwen3_moe")]


def family(name: str, tied: bool = False) -> Any:
    """A model in fp32 without dropout, whose vectors (norms, biases) are random too."""
    model_type, config_type, settings = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_type(config_type(**settings, tie_word_embeddings=tied)).float()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model.eval()
