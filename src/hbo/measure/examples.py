"""One training example as the model sees it: token ids, and which of them are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenArray = NDArray[np.integer[Any]]

IGNORED = -100
"""The label of a token that is not trained on (prompt, template, padding)."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of an example, and the labels that mark its response.

    ``labels[t]`` is ``input_ids[t]`` where token t belongs to the response and -100 elsewhere, as
    in TRL and Transformers: the model predicts ``labels[t]`` from the tokens before t. The two
    ``alone`` fields hold the response without its prompt, for the second pass that
    instruction-following difficulty needs.

    Args:
        input_ids: (T,) token ids.
        labels: (T,) the same ids on the response, -100 elsewhere.
        alone_ids: (U,) token ids of the response alone; ``None`` where no such pass is wanted.
        alone_labels: (U,) labels of that sequence.

    Raises:
        ValueError: Ids and labels differ in length, or only one of the ``alone`` fields is given.

    Example:
        >>> example = Encoded(np.array([5, 6, 7, 8]), np.array([-100, -100, 7, 8]))
        >>> example.num_tokens, example.response_tokens
        (4, 2)
    """

    input_ids: TokenArray
    labels: TokenArray
    alone_ids: TokenArray | None = None
    alone_labels: TokenArray | None = None

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(f"{len(self.input_ids)} token ids, {len(self.labels)} labels")
        if (self.alone_ids is None) != (self.alone_labels is None):
            raise ValueError("alone_ids and alone_labels go together")
        alone = self.alone_ids, self.alone_labels
        if alone[0] is not None and alone[1] is not None and len(alone[0]) != len(alone[1]):
            raise ValueError(f"{len(alone[0])} alone ids, {len(alone[1])} alone labels")

    @property
    def num_tokens(self) -> int:
        """T, all tokens of the example."""
        return len(self.input_ids)

    @property
    def response_tokens(self) -> int:
        """Tokens with a loss; the first token of a sequence, predicted by nothing, has none."""
        return int(np.count_nonzero(np.asarray(self.labels)[1:] != IGNORED))

    @property
    def alone(self) -> Encoded | None:
        """The response without its prompt, as an example of its own."""
        if self.alone_ids is None or self.alone_labels is None:
            return None
        return Encoded(self.alone_ids, self.alone_labels)
