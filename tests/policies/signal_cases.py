"""Training states for policies: ordinary ones, and every kind that could break arithmetic."""

import numpy as np

from hbo.signals import CELL_SIGNALS, EXAMPLE_SIGNALS, WHOLE_SIGNALS, Signals, SignalTable


def table_of(means, counts=4, spread=0.1):
    """A table with these cell means and this spread; no values where the mean is NaN."""
    means = np.asarray(means, dtype=float)
    counts = np.where(np.isnan(means), 0.0, counts)
    sums = np.where(counts > 0, means * counts, 0.0)
    squares = np.where(counts > 0, (means**2 + spread**2) * counts, 0.0)
    return SignalTable(sums, squares, counts)


def signals_of(sizes, step=200, *, whole=None, before=None, **means):
    """Signals with these (K, G) means by signal name."""
    sizes = np.asarray(sizes)
    return Signals(
        now={name: table_of(value) for name, value in means.items()},
        before={name: table_of(value) for name, value in (before or {}).items()},
        whole={name: np.asarray(value, dtype=float) for name, value in (whole or {}).items()},
        step=step,
        sizes=sizes,
        draws=np.zeros_like(sizes),
    )


def every_signal(sizes, values, *, step=200):
    """The same (K, G) values for every signal there is, and their first group measured whole."""
    values = np.asarray(values, dtype=float)
    return signals_of(
        sizes,
        step,
        whole=dict.fromkeys(WHOLE_SIGNALS, values[:, 0]) | dict.fromkeys(CELL_SIGNALS, values),
        before=dict.fromkeys(EXAMPLE_SIGNALS, 2 * values),
        **dict.fromkeys(EXAMPLE_SIGNALS, values),
    )


def random_signals(sizes, seed, *, step=200):
    """Positive values that differ by subset and group."""
    generator = np.random.default_rng(seed)
    subset = generator.lognormal(0.0, 0.5, size=(len(sizes), 1))
    return every_signal(sizes, subset * generator.lognormal(0.0, 0.3, np.shape(sizes)), step=step)


def _some(sizes, odd):
    values = np.random.default_rng(0).uniform(0.5, 2.0, np.shape(sizes))
    values[::2] = odd
    return values


WILD = {
    "none": lambda sizes: np.full(np.shape(sizes), np.nan),
    "some unknown": lambda sizes: _some(sizes, np.nan),
    "zero": lambda sizes: np.zeros(np.shape(sizes)),
    "some zero": lambda sizes: _some(sizes, 0.0),
    "equal": lambda sizes: np.ones(np.shape(sizes)),
    "huge": lambda sizes: np.full(np.shape(sizes), 1e150),
    "some huge": lambda sizes: _some(sizes, 1e150),
    "tiny": lambda sizes: np.full(np.shape(sizes), 1e-150),
    "infinite": lambda sizes: np.full(np.shape(sizes), np.inf),
    "some infinite": lambda sizes: _some(sizes, np.inf),
    "negative": lambda sizes: np.full(np.shape(sizes), -1.0),
    "some negative": lambda sizes: _some(sizes, -1.0),
}
"""(K, G) values that training states should not have, and may."""
