"""What one layer adds to each example's gradient norm, without forming any example's gradient."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hbo.measure.sharding import is_dtensor

NUMBERS_AT_A_TIME = 2**26
"""Numbers that the rule of one layer may take at a time: 256 MiB in fp32."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of each example lie in the tensors of a batch.

    Args:
        count: Examples of the batch, B.
        shape: Rows, and tokens of the fullest, where a row holds several examples; ``None``: each
            has a row of its own.
        rows: (B, 1) the row of each example.
        positions: (B, T) places of each example's tokens in its row.
        mask: (B, T) 0 where an example has fewer tokens than T.

    Example:
        >>> Layout.packed(torch.tensor([1, 2])).take(torch.tensor([[[5.0], [6.0], [7.0]]])).mT
        tensor([[[5., 0.]],
        <BLANKLINE>
                [[6., 7.]]])
    """

    count: int
    shape: tuple[int, int] | None = None
    rows: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    _last: list[tuple[Any, torch.Tensor]] = field(default_factory=list)

    @classmethod
    def packed(cls, lengths: torch.Tensor, rows: torch.Tensor | None = None) -> Layout:
        """Examples that follow each other in one row, or in several.

        Args:
            lengths: (B,) tokens of each.
            rows: (B,) row of each, not descending, from 0; ``None``: all are in one.
        """
        rows = torch.zeros_like(lengths) if rows is None else rows.to(lengths.device)
        steps = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device)
        mask = steps < lengths[:, None]
        before = lengths.cumsum(0) - lengths
        starts = before - before[torch.searchsorted(rows, rows)]
        positions = torch.where(mask, starts[:, None] + steps, 0)
        shape = (int(rows[-1]) + 1, int((starts + lengths).max())) if len(lengths) else (1, 0)
        return cls(len(lengths), shape, rows[:, None], positions, mask)

    def holds(self, tensor: torch.Tensor, missing: int = 0) -> bool:
        """Whether a (rows, tokens, ...) tensor is laid out in this way, some tokens aside."""
        if tensor.ndim < 2 or self.shape is None:
            return tensor.ndim >= 2 and tensor.shape[0] == self.count
        # A collator may have padded the rows.
        return tensor.shape[0] == self.shape[0] and tensor.shape[1] + missing >= self.shape[1]

    def take(self, tensor: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """(b, T, ...) the tokens of some examples, zero where an example has fewer."""
        if self.rows is None or self.positions is None or self.mask is None:
            return tensor[start:stop]
        rows, positions, mask = (
            part[start:stop].to(tensor.device) for part in (self.rows, self.positions, self.mask)
        )
        taken = tensor[rows, positions]
        return taken * mask.reshape(mask.shape + (1,) * (taken.ndim - 2))

    def length(self, tensor: torch.Tensor) -> int:
        """Tokens of the longest example of a tensor, T."""
        return tensor.shape[1] if self.mask is None else self.mask.shape[1]

    def gram(self, inputs: torch.Tensor, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """(b, T, T) products of each two tokens' inputs, kept for the next layer with the same."""
        version, storage = inputs._version, (inputs.data_ptr(), inputs.shape, inputs.stride())
        # The inputs are kept as well, or their memory could be another tensor's by then.
        key = (inputs, version, storage, start, stop, dtype)
        if not self._last or self._last[0][0][1:] != key[1:]:
            a = self.take(inputs, start, stop).to(dtype)
            self._last[:] = [(key, _wide(a @ a.mT))]
        return self._last[0][1]

    def forget(self) -> None:
        """Let go of what was kept."""
        self._last.clear()

    def chunks(self, numbers_per_example: int) -> Iterator[tuple[int, int]]:
        """Ranges of examples that take ``NUMBERS_AT_A_TIME`` at most, one example at least."""
        step = max(NUMBERS_AT_A_TIME // max(numbers_per_example, 1), 1)
        for start in range(0, self.count, step):
            yield start, min(start + step, self.count)


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix: ``nn.Linear``, or the ``Conv1D`` of GPT-2, its transpose.

    With inputs a (T, I) and output gradients g (T, O) of one example, the gradient of the matrix is
    g^T a, and its squared norm is sum((a a^T) * (g g^T)): two T x T matrices in place of an O x I
    one (Goodfellow 2015, arXiv 1510.01799). Where that takes more work, as for the thin matrices of
    LoRA, the gradient itself is formed. Of layers that share their inputs (query, key and value;
    gate and up), the first makes a a^T for all. Products are in the precision of the gradients (of
    fp16: in fp32), and summed in fp32 at least.

    Args:
        module: The layer.
        weight: Whether its matrix counts.
        bias: Whether its bias counts.
    """

    module: nn.Module
    weight: bool
    bias: bool

    def problem(self, inputs: torch.Tensor, output: torch.Tensor) -> str | None:
        """It is split by tensor parallelism, or its inputs are not (rows, tokens, width)."""
        # FSDP2 has gathered the weight by now; what is still in shards is tensor-parallel.
        if is_dtensor(self.module.get_parameter("weight")):
            return "is split by tensor parallelism"
        return None if inputs.ndim == 3 else f"is fed a tensor of {inputs.ndim} dimensions"

    def squares(self, inputs: torch.Tensor, gradient: torch.Tensor, layout: Layout) -> torch.Tensor:
        """(B,) squared norm of each example's gradient of this layer's parameters."""
        # fp16 would overflow, under a loss scale above all.
        dtype = torch.float32 if gradient.dtype is torch.float16 else gradient.dtype
        wide, high = inputs.shape[-1], gradient.shape[-1]
        length = layout.length(inputs)
        # Half of the work of a a^T: mostly two layers or three share it.
        gram = length * (wide / 2 + high) < wide * high
        numbers = length * (wide + high) + (2 * length**2 if gram else wide * high)
        parts = []
        for start, stop in layout.chunks(numbers):
            g = layout.take(gradient, start, stop).to(dtype)
            total = torch.zeros(stop - start, dtype=_wide(g).dtype, device=g.device)
            if self.weight:
                if gram:
                    products = layout.gram(inputs, start, stop, dtype) * _wide(g @ g.mT)
                    total += products.sum(dim=(1, 2))
                else:
                    found = _wide(g.mT @ layout.take(inputs, start, stop).to(dtype))
                    # Row by row: fp32 sums of millions of squares come out too low.
                    total += torch.linalg.vector_norm(found, dim=2).square().sum(dim=1)
            if self.bias:
                total += _wide(g).sum(dim=1).square().sum(dim=1)
            parts.append(total)
        # Rounding can leave a Gram sum a hair below zero.
        return torch.cat(parts).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Lookup:
    """An embedding: the gradient of a token's row is the sum over the places that hold the token.

    With output gradients e (T, H) of one example, the squared norm is the sum of e_t . e_u over all
    pairs of places with the same token. A constant that the layer multiplies its rows by (Gemma)
    is read off a twin whose rows are 1.

    Args:
        module: The embedding.
        positions: Whether it is one of positions, which a model looks up in one row for all
            examples and then adds to each.
    """

    module: nn.Embedding
    positions: bool = False

    def problem(self, inputs: torch.Tensor, output: torch.Tensor) -> str | None:
        """Its output is not its rows at the ids it was called with, times one number."""
        weight = self.module.weight
        if self.module.max_norm is not None or self.module.scale_grad_by_freq:
            return "changes its own rows or scales their gradients"
        if is_dtensor(weight):
            return "is split by tensor parallelism"
        if inputs.dtype.is_floating_point or inputs.shape != output.shape[:-1]:
            return "is not called with token ids alone"
        with torch.no_grad():
            expected = _wide(weight[inputs[:1, :8]]) * self._scale(inputs[:1, :8])
            same = _near(output[:1, :8], expected)
        return None if same else "does more than look its rows up"

    def rows(self, inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """(B, T, H) gradients of the rows that were looked up, place by place."""
        rows = _wide(gradient) * self._scale(inputs)
        if self.module.padding_idx is not None:  # a row that torch gives no gradient
            rows = rows.masked_fill((inputs == self.module.padding_idx)[..., None], 0.0)
        return rows

    def squares(self, inputs: torch.Tensor, gradient: torch.Tensor, layout: Layout) -> torch.Tensor:
        """(B,) squared norm of each example's gradient of this layer's parameters."""
        length, width = layout.length(inputs), gradient.shape[-1]
        parts = []
        for start, stop in layout.chunks(2 * length * (length + width)):
            ids = layout.take(inputs, start, stop)
            rows = self.rows(ids, layout.take(gradient, start, stop))
            same = ids[:, :, None] == ids[:, None, :]
            parts.append(((rows @ rows.mT) * same).sum(dim=(1, 2)))
        return torch.cat(parts).clamp(min=0)

    def _scale(self, ids: torch.Tensor) -> torch.Tensor:
        # In the rows' own type, to which a layer may round its constant.
        dtype = self.module.weight.dtype
        ones = torch.ones(self.module.num_embeddings, 1, dtype=dtype, device=ids.device)
        return _wide(_twin_output(self.module, {"weight": ones}, ids))


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A norm: its output is linear in its parameters, channel by channel.

    RMSNorm, LayerNorm and their relatives differ in what multiplies the parameters (x, 1 + x, at
    which precision). It is read off the layer itself: a twin with one parameter set to ones and the
    others to zeros, less a twin with all of them zero. The first call of a layer is checked.

    Args:
        module: The layer; its parameters are vectors.
        names: Those that count.
    """

    module: nn.Module
    names: tuple[str, ...]
    _offset: list[bool] = field(default_factory=list)

    def problem(self, inputs: torch.Tensor, output: torch.Tensor) -> str | None:
        """Its output is not the sum over its parameters of parameter times factor."""
        if self._offset:
            return None
        parameters = dict(self.module.named_parameters(recurse=False))
        if any(is_dtensor(parameter) for parameter in parameters.values()):
            return "is split by tensor parallelism"
        if not inputs.dtype.is_floating_point or inputs.shape != output.shape:
            return "is not a norm: its output has another shape than its input"
        if inputs.ndim < 3:
            return f"is fed a tensor of {inputs.ndim} dimensions"
        start = _wide(inputs[:1, :2])
        try:
            with torch.no_grad():
                offset = expected = self._output({}, start)
                for name, parameter in parameters.items():
                    expected = expected + self._factor(name, start) * _wide(parameter)
                near = _near(output[:1, :2], expected)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            return f"does not run with other parameters ({error})"
        if not near:
            return "is not linear in its parameters, channel by channel"
        # Whether something is left without parameters (Gemma's 1 + weight), to be taken off.
        self._offset.append(bool(offset.any()))
        return None

    def squares(self, inputs: torch.Tensor, gradient: torch.Tensor, layout: Layout) -> torch.Tensor:
        """(B,) squared norm of each example's gradient of this layer's parameters."""
        between = tuple(range(1, inputs.ndim - 1))  # tokens, and heads where each has its norm
        parts = []
        # Inputs, gradients, and what the layer makes of them on the way, about.
        for start, stop in layout.chunks(8 * layout.length(inputs) * inputs[0, 0].numel()):
            x, g = (_wide(layout.take(part, start, stop)) for part in (inputs, gradient))
            sums = [(self._factor(name, x) * g).sum(dim=between) for name in self.names]
            parts.append(torch.cat(sums, dim=1).square().sum(dim=1))
        return torch.cat(parts)

    def _factor(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        output = self._output({name: 1.0}, inputs)
        return output if self._offset == [False] else output - self._output({}, inputs)

    def _output(self, values: dict[str, float], inputs: torch.Tensor) -> torch.Tensor:
        filled = {
            # Whole also where FSDP2 has cut the layer's own again.
            name: inputs.new_full(parameter.shape, values.get(name, 0.0))
            for name, parameter in self.module.named_parameters(recurse=False)
        }
        return _twin_output(self.module, filled, inputs)


Layer = Dense | Lookup | Elementwise
"""A module whose parameters' per-example gradients follow from its inputs and output gradients.

``problem`` says why the rule does not hold for a call, ``squares`` what the layer adds.
"""


def layer_of(module: nn.Module, path: str, names: set[str]) -> Layer | None:
    """The rule for a module's own parameters of these names; ``None``: there is none."""
    from transformers.pytorch_utils import Conv1D

    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, (nn.Linear, Conv1D)) and type(module).forward in (
        nn.Linear.forward,
        Conv1D.forward,
    ):
        return Dense(module, "weight" in names, "bias" in names)
    if isinstance(module, nn.Embedding):
        # GPT-2's name, and its descendants'. What others do with a lone row, nobody knows.
        positions = path.rpartition(".")[2] == "wpe"
        return Lookup(module, positions) if set(own) == {"weight"} else None
    vectors = all(parameter.ndim == 1 for parameter in own.values())
    return Elementwise(module, tuple(sorted(names))) if vectors and _of_one(module) else None


def _of_one(module: nn.Module) -> bool:
    """Whether a module can be called with one argument (DoRA's magnitudes cannot)."""
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(needed) == 1 and needed[0].kind is not inspect.Parameter.KEYWORD_ONLY


def _twin_output(module: nn.Module, values: dict[str, torch.Tensor], inputs: Any) -> torch.Tensor:
    """The output of a module with other values for its parameters; no hook of it runs."""
    twin = copy.copy(module)
    twin._parameters = {name: nn.Parameter(value, False) for name, value in values.items()}
    output = twin.forward(inputs)
    if not isinstance(output, torch.Tensor):
        raise TypeError("its output is no tensor")
    return output


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32, or in fp64 if it is."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    exact = found.dtype in (torch.float32, torch.float64)
    tolerance = 1e-4 if exact else 3e-2
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance)
