"""Taps: the gradient norm of each example of a batch, read while a backward pass goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.batches import is_out_of_memory
from hbo.measure.forward import head_of
from hbo.measure.layer_norms import Dense, Layer, Layout, Lookup, layer_of

Scope = Literal["all", "blocks", "adapters"]
"""Which trained parameters a per-example gradient norm covers.

``all``: every one. ``blocks``: all but those of embeddings and of the output head. ``adapters``:
those that PEFT added, whatever else is trained beside them.
"""

DEFAULT_SCOPE: Scope = "all"
"""What the norms of probes cover where nobody says; measured, it costs what ``blocks`` costs.

Those of training are told, since a fused loss goes around the output head (``training_norms``).
"""


class NotApplicable(ConfigError):
    """The taps do not hold for this model: a probe goes the slow way, a training is probed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"gradient norms cannot be read off this model's backward pass: {reason}; set "
            "balance.signals to probe, or use a global_reward that needs no gradient"
        )


@dataclass(frozen=True, eq=False)
class Coverage:
    """The layers whose gradients make up the norm.

    Args:
        layers: One for each module that holds parameters of the norm.
        head: Modules of the output head, which may see some tokens of the batch only.
        tied: The embedding and the head that share one matrix, where that counts.
    """

    layers: tuple[Layer, ...]
    head: frozenset[nn.Module]
    tied: tuple[Lookup, Dense] | None


def parameters_of(module: nn.Module, scope: Scope) -> dict[str, nn.Parameter]:
    """The trained parameters that a norm covers, each once.

    Raises:
        ConfigError: None is trained there; or the word is unknown.
    """
    if scope not in get_args(Scope):
        raise ConfigError(f"a norm covers {', '.join(get_args(Scope))}, not {scope!r}")
    chosen = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not chosen:
        raise ConfigError("gradient norms need a trainable parameter, and the model has none")
    if scope == "blocks":
        outside = _outside_blocks(module)
        chosen = {name: p for name, p in chosen.items() if id(p) not in outside}
    elif scope == "adapters":
        added = _added_by_peft(module)
        chosen = {name: p for name, p in chosen.items() if id(p) in added}
    if not chosen:
        raise ConfigError(
            f"gradient norms over {scope!r} need a trained parameter there; use 'all'"
        )
    return chosen


def coverage_of(module: nn.Module, scope: Scope) -> Coverage:
    """Find the layers of a norm, and make sure that there is a rule for each.

    Raises:
        ConfigError: As ``parameters_of``.
        NotApplicable: A parameter is held by a module of another kind than those of
            ``layer_norms``, or by several modules that are not embedding and head.
    """
    chosen = {id(p) for p in parameters_of(module, scope).values()}
    layers: list[Layer] = []
    holders: dict[int, list[Layer]] = {}
    for path, part in module.named_modules():
        own = {n: p for n, p in part.named_parameters(recurse=False) if id(p) in chosen}
        if not own:
            continue
        layer = layer_of(part, path, set(own))
        if layer is None:
            name = f"{path}.{next(iter(own))}"
            raise NotApplicable(f"there is no rule for {name}, a part of {type(part).__name__}")
        layers.append(layer)
        for parameter in own.values():
            holders.setdefault(id(parameter), []).append(layer)
    head = head_of(module)
    tied = _tied([found for found in holders.values() if len(found) > 1], head)
    inside = frozenset() if head is None else frozenset(head.modules())
    return Coverage(tuple(layers), inside, tied)


class Record:
    """Squared gradient norms of the examples of one batch, added up while gradients come by.

    What there is no rule for is noted, not raised, for it comes up in the midst of a model's pass,
    which may be a training's: ``check`` says so afterwards.

    Args:
        coverage: Whose gradients count.
        layout: Where each example's tokens are.
        head_layout: The same for the output head, where that sees other tokens.
        clock: Opened around what is done here inside a backward pass.
    """

    def __init__(
        self,
        coverage: Coverage,
        layout: Layout,
        head_layout: Layout | None = None,
        clock: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._clock = clock
        self.squares: torch.Tensor | None = None
        self._coverage = coverage
        self._layout = layout
        self._head_layout = head_layout or layout
        self._problem: str | None = None
        self._called: set[nn.Module] = set()
        self._measured: Counter[nn.Module] = Counter()
        self._ids: torch.Tensor | None = None
        self._head: tuple[torch.Tensor, torch.Tensor] | None = None

    def called(self, layer: Layer, args: tuple[Any, ...], output: torch.Tensor) -> bool:
        """Check a call before its gradient comes: whether the rule of the layer holds for it."""
        if self._problem is None:
            problem = self._problem_of(layer, args, output)
            if problem is not None:
                self._problem = f"a layer ({type(layer.module).__name__}) {problem}"
        if self._problem is not None:
            return False
        self._called.add(layer.module)
        if self._coverage.tied is not None and layer is self._coverage.tied[0]:
            self._ids = args[0]
        return True

    def knows(self, layer: Layer) -> bool:
        """Whether the layer was called."""
        return layer.module in self._called

    def spread(self, layer: Layer, output: torch.Tensor) -> int:
        """1, or the rows that one row of positions is going to be added to."""
        positions = isinstance(layer, Lookup) and layer.positions and output.shape[0] == 1
        return self._layout.count if positions and self._layout.shape is None else 1

    def add(self, layer: Layer, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add what one layer contributes."""
        if self._problem is None:
            try:
                with self._clock():
                    self._add(layer, inputs, gradient)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._head = None
                self._problem = f"memory ran out at a layer ({type(layer.module).__name__})"

    def _add(self, layer: Layer, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        self._measured[layer.module] += 1
        squares = layer.squares(inputs, gradient, self._layout_of(layer))
        tied = self._coverage.tied
        if tied is not None and layer is tied[1]:
            self._keep_head(inputs, gradient)
        if tied is not None and layer is tied[0]:
            squares = squares + self._cross_term(tied[0].rows(inputs, gradient))
        # A model may be spread over devices.
        self.squares = (
            squares if self.squares is None else self.squares + squares.to(self.squares.device)
        )

    def check(self) -> None:
        """At any time.

        Raises:
            NotApplicable: There was no rule for how a layer was called.
        """
        if self._problem is not None:
            raise NotApplicable(self._problem)

    def check_called(self) -> None:
        """After the forward pass; of layers that run again, after the backward pass.

        Raises:
            NotApplicable: As ``check``, or a layer of the norm took no part.
        """
        self.check()
        missing = [x.module for x in self._coverage.layers if x.module not in self._called]
        if missing and missing[0] in self._coverage.head:
            raise NotApplicable("the output head does not run as a module (a fused loss)")
        if missing:
            raise NotApplicable(f"a layer ({type(missing[0]).__name__}) did not run")

    def check_measured(self) -> None:
        """After the backward pass.

        Raises:
            NotApplicable: A layer of the norm got no gradient, or one more than once.
        """
        self.check()
        for layer in self._coverage.layers:
            if (times := self._measured[layer.module]) != 1:
                name = type(layer.module).__name__
                what = f"{times} gradients" if times else "no gradient"
                raise NotApplicable(f"a layer ({name}) got {what} from the pass")

    def forget(self) -> None:
        """Let go of the tensors of the model that the pass needed."""
        self._ids = self._head = None
        self._layout.forget()
        self._head_layout.forget()

    def _problem_of(self, layer: Layer, args: tuple[Any, ...], output: torch.Tensor) -> str | None:
        if len(args) != 1 or not isinstance(args[0], torch.Tensor):
            return "is not called with one tensor"
        if layer.module in self._called:
            return "runs more than once in a forward pass"
        if self.spread(layer, output) == 1 and not self._layout_of(layer).holds(output):
            return f"gives a tensor of shape {tuple(output.shape)}, not one row an example"
        return layer.problem(args[0], output)

    def _layout_of(self, layer: Layer) -> Layout:
        return self._head_layout if layer.module in self._coverage.head else self._layout

    def _keep_head(self, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Of the head's gradients keep what the embedding's can meet: the batch's own tokens."""
        if self._ids is None:
            self._problem = "the embedding that shares the head's matrix did not run"
            return
        ids = self._layout.take(self._ids.to(gradient.device))
        columns = []
        for start, stop in self._head_layout.chunks(gradient.shape[-1] * gradient.shape[1]):
            taken = self._head_layout.take(gradient, start, stop)
            where = ids[start:stop, None, :].expand(-1, taken.shape[1], -1)
            columns.append(taken.gather(2, where))
        self._head = self._head_layout.take(inputs), torch.cat(columns)

    def _cross_term(self, rows: torch.Tensor) -> torch.Tensor | float:
        """(B,) twice the inner product of an example's two gradients of the tied matrix.

        The embedding's has the rows e_t at token i_t, the head's is sum_s g_s a_s^T: together the
        sum over t and s of (e_t . a_s) g_s[i_t].
        """
        if self._head is None:  # a fused loss: ``check_called`` says so
            return 0.0
        states, columns = (tensor.to(rows) for tensor in self._head)
        self._head = None
        return 2 * ((states @ self._layout.take(rows).mT) * columns).sum(dim=(1, 2))


class _Tap(torch.autograd.Function):
    """Nothing, on the way forward; on the way back, a look at a layer's inputs and gradient.

    One row that the model goes on to add to several is repeated (no memory is copied), so that the
    gradients of these rows can be told apart; here they are summed, as the addition would. The
    inputs are saved as autograd saves them, so a layer that training recomputes (checkpointing) or
    moves away (offloading) is seen when it is back, and no memory is held before.
    """

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, inputs: torch.Tensor, record: Record, layer: Layer
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.record, ctx.layer, ctx.rows = record, layer, record.spread(layer, output)
        # Not a view of the output: a model may go on in place.
        output = output.detach()
        return output if ctx.rows == 1 else output.expand(ctx.rows, *output.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        if ctx.rows > 1:
            inputs = inputs.expand(ctx.rows, *inputs.shape[1:])
        ctx.record.add(ctx.layer, inputs, gradient)
        return gradient if ctx.rows == 1 else gradient.sum(0, keepdim=True), None, None, None


@contextmanager
def tapped(record: Record, coverage: Coverage) -> Iterator[None]:
    """While open, what runs through the layers of a norm is measured on its way back."""
    handles = tap(record, coverage)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tap(record: Record, coverage: Coverage) -> list[torch.utils.hooks.RemovableHandle]:
    """As ``tapped``; it ends when the handles are removed, not before the backward pass is over."""

    def hook_for(layer: Layer) -> Any:
        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> torch.Tensor | None:
            # Without a graph (the first pass of re-entrant checkpointing) there is nothing to tap;
            # and what is recomputed inside a backward pass was checked on its way forward.
            if not isinstance(output, torch.Tensor) or not output.requires_grad:
                return None
            given = (*args, *kwargs.values())
            checked = torch._C._current_graph_task_id() != -1 and record.knows(layer)
            if not checked and not record.called(layer, given, output):
                return None
            tapped: torch.Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
                output, given[0].detach(), record, layer
            )
            return tapped

        return hook

    return [
        layer.module.register_forward_hook(hook_for(layer), with_kwargs=True)
        for layer in coverage.layers
    ]


def _outside_blocks(module: nn.Module) -> set[int]:
    head = head_of(module)
    parts: list[nn.Module] = [x for x in module.modules() if isinstance(x, nn.Embedding)]
    parts += [] if head is None else [head]
    return {id(parameter) for part in parts for parameter in part.parameters()}


def _added_by_peft(module: nn.Module) -> set[int]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        id(parameter)
        for part in module.modules()
        if isinstance(part, BaseTunerLayer)
        for name in part.adapter_layer_names
        for parameter in getattr(part, name).parameters()
    }


def _tied(shared: list[list[Layer]], head: nn.Module | None) -> tuple[Lookup, Dense] | None:
    if not shared:
        return None
    if len(shared) == 1 and len(shared[0]) == 2:
        first, second = sorted(shared[0], key=lambda layer: isinstance(layer, Dense))
        if isinstance(first, Lookup) and isinstance(second, Dense) and second.module is head:
            return first, second
    names = " and ".join(type(layer.module).__name__ for layer in shared[0])
    raise NotApplicable(f"a parameter is shared by {names}")
