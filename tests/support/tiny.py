"""A language model, a tokenizer and records small enough for unit tests, built without network.

Everything is a function of its arguments: the same call gives the same bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML_WITH_MARKERS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

KINDS = ("copy", "count", "add", "noise")
LAYOUTS = ("prompt-completion", "chat", "messages", "text")


def tiny_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes and three special tokens, without merges.

    Args:
        chat_template: ChatML as SmolLM2's, without its default system prompt; `CHATML_WITH_MARKERS`
            has the `{% generation %}` markers; None gives a tokenizer without a chat template.
    """
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, START, END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=PAD
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    """A random Llama with 2 layers of width 32 in fp32, whose vocabulary is `tiny_tokenizer`'s.

    Args:
        seed: of the weights; the global random state is left alone.
        dropout: of the attention, the only dropout a Llama has.
    """
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        attention_dropout=dropout,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.float()


def tiny_records(
    n: int, seed: int = 0, kind: str = "copy", layout: str = "prompt-completion"
) -> list[dict[str, Any]]:
    """Toy records: `n` different questions of one task, with longer and shorter answers.

    Args:
        n: how many records.
        seed: of the letters and numbers in them.
        kind: the task, easiest first: "copy" a word, "count" upwards, "add" two numbers, "noise".
        layout: "prompt-completion" (strings), "chat" (the same as messages), "messages", "text".
    """
    assert kind in KINDS and layout in LAYOUTS, (kind, layout)
    generator = np.random.Generator(np.random.Philox(key=[seed, KINDS.index(kind)]))
    return [_laid_out(*_task(kind, i, generator), layout=layout) for i in range(n)]


def save_tiny(path: str | Path, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """Write the tiny model and tokenizer to a folder for `from_pretrained`, and return it."""
    tiny_model(seed).save_pretrained(path)
    tiny_tokenizer(chat_template).save_pretrained(path)
    return Path(path)


def _task(kind: str, number: int, generator: np.random.Generator) -> tuple[str, str]:
    length = int(generator.integers(2, 9))
    if kind == "add":
        left, right = (int(value) for value in generator.integers(0, 10 ** (length // 2), size=2))
        return f"{number}: {left}+{right}=?", str(left + right)
    if kind == "count":
        start = int(generator.integers(0, 50))
        return f"{number}: {start}..", " ".join(str(start + i + 1) for i in range(length))
    word, other = ("".join(generator.choice(list("abcdefgh"), size=length)) for _ in range(2))
    return (f"{number}: copy {word}", word) if kind == "copy" else (f"{number}: say {word}", other)


def _laid_out(question: str, answer: str, *, layout: str) -> dict[str, Any]:
    user = {"role": "user", "content": question}
    assistant = {"role": "assistant", "content": answer}
    if layout == "chat":
        return {"prompt": [user], "completion": [assistant]}
    if layout == "messages":
        return {"messages": [user, assistant]}
    if layout == "text":
        return {"text": f"{question} {answer}"}
    return {"prompt": question + " ", "completion": answer}
