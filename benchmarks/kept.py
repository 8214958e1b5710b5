"""Hidden states below the layers that are trained, computed once for each text and kept.

Where LoRA adapts the top layers of a model only, what the layers below give of a text never changes
during a comparison. ``kept_below`` lets a model look it up: losses and gradients are the same but
for the rounding of another padding, and a step costs what its trained layers cost. What needs the
keys and values of every layer (generation) runs whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class States:
    """Hidden states of texts by their tokens, in files that several processes may read.

    Args:
        folder: Where they are kept; each process that ``save``s adds a file of its own.
        width: Numbers of a state.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self._known: dict[bytes, np.ndarray] = {}
        self._new: dict[bytes, np.ndarray] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(folder.glob("*.json")):
            self._load(index)

    def find(self, tokens: bytes) -> np.ndarray | None:
        """(T, width) states of a text; ``None`` where they are not known."""
        return self._known.get(tokens)

    def add(self, tokens: bytes, states: np.ndarray) -> None:
        """Keep the states of a text."""
        self._known[tokens] = self._new[tokens] = states

    def save(self) -> None:
        """Write what was added, for other processes."""
        if not self._new:
            return
        name = f"{os.getpid()}-{len(list(self.folder.glob('*.json')))}"
        np.save(self.folder / f"{name}.npy", np.concatenate(list(self._new.values())))
        index = {"texts": [np.frombuffer(key, np.int32).tolist() for key in self._new]}
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(index), encoding="utf-8")
        part.rename(self.folder / f"{name}.json")
        self._new.clear()

    def _load(self, index: Path) -> None:
        states = np.load(index.with_suffix(".npy"), mmap_mode="r")
        place = 0
        for text in json.loads(index.read_text(encoding="utf-8"))["texts"]:
            self._known[np.array(text, np.int32).tobytes()] = states[place : place + len(text)]
            place += len(text)


@contextmanager
def kept_below(model: nn.Module, layer: int, states: States) -> Iterator[None]:
    """While open, the layers below ``layer`` run only on texts whose states are not known yet.

    Args:
        model: A causal language model of the Llama family, before adapters are added to it. None of
            what lies below ``layer`` may be trained or drop anything out.
        layer: The lowest layer that runs always.
        states: What is known, and is added to.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    lower = list(decoder.layers[:layer])
    now: dict[str, Any] = {"kept": None, "rows": None}

    def look_up(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options.get("input_ids", args[0] if args else None)
        now["kept"] = now["rows"] = None
        if ids is None or options.get("use_cache") is not False:
            return
        mask = options.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        rows = [
            (row[where].to(torch.int32).numpy().tobytes(), where)
            for row, where in zip(ids, real, strict=True)
        ]
        found = [states.find(tokens) for tokens, _ in rows]
        if any(known is None for known in found):
            now["rows"] = rows
            return
        kept = torch.zeros(*ids.shape, states.width)
        for row, (known, (_, where)) in enumerate(zip(found, rows, strict=True)):
            kept[row, where] = torch.from_numpy(np.array(known))
        now["kept"] = kept

    def skipping(position: int, run: Any) -> Any:
        def forward(hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
            if now["kept"] is not None:
                return now["kept"] if position == layer - 1 else hidden
            output = run(hidden, *args, **options)
            if position == layer - 1 and now["rows"] is not None:
                for row, (tokens, where) in enumerate(now["rows"]):
                    if states.find(tokens) is None:
                        states.add(tokens, output[row][where].detach().float().numpy().copy())
            return output

        return forward

    before = [module.forward for module in lower]
    handle = decoder.register_forward_pre_hook(look_up, with_kwargs=True)
    for position, module in enumerate(lower):
        module.forward = skipping(position, module.forward)
    try:
        yield
    finally:
        handle.remove()
        for module, run in zip(lower, before, strict=True):
            module.forward = run
        states.save()
