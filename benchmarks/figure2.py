"""Figure 2 of the paper: can the released actor have drawn it, and is its "cycle" more than noise?

    python benchmarks/figure2.py [--quick] [--json FILE]

*Pace.* The figure's global probabilities on the multilingual mixture (Llama-3.1-8B) are known at
some steps, from its vector drawing. The released actor starts from a fit to the prior and takes
inner Adam steps at 1e-4 towards R / sum R. It is given the rewards that suit the figure best,
constant ones in proportion to the figure's own last law, and updates at the figure's 86 points
(each 50 steps) or at every 200 steps, as the text says. The table shows how far it is from the
figure by the number of inner steps: the root mean square of differences of log-probabilities.

*Cycle.* The paper sees a pattern of some 800 steps in the local curves. The peaks of their
autocorrelation were 0.20, 0.28, 0.33 and 0.36 (groups 1 to 4, linear trend taken off, first peak
after the first zero). The null is the same actor on rewards that are constant but for white noise,
in proportion to the figure's last law. The table shows, by the noise (standard deviation over
mean), how far the curves of a run range, how often a group's curve has a peak as high as that
group's in the figure, and how often all four are as high, in whatever order. How the figure's were
estimated is not known: the sum of products at a lag is divided by n, or by their number.

No model is run. Actor: `hbo.policies.actor`, with the released code's settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import common
import numpy as np

from hbo.mixture import FloatArray
from hbo.policies.actor import Actor, fit_to_prior, reinforce_step

SIZES = np.array([273.0, 102.0, 49.0, 15.0, 12.0, 6.0, 1.0, 0.578])
"""Examples of en zh ru es ar de hi sw, thousands (section 4.1 of arXiv 2505.12300)."""
FIGURE = {
    50: [0.540, 0.203, 0.104, 0.065, 0.054, 0.027, 0.005, 0.003],
    500: [0.353, 0.156, 0.092, 0.121, 0.169, 0.072, 0.023, 0.013],
    1000: [0.274, 0.127, 0.095, 0.104, 0.177, 0.084, 0.083, 0.056],
    2000: [0.116, 0.156, 0.153, 0.138, 0.183, 0.085, 0.087, 0.081],
    3000: [0.149, 0.194, 0.141, 0.149, 0.172, 0.117, 0.043, 0.036],
    4300: [0.152, 0.164, 0.156, 0.152, 0.208, 0.093, 0.042, 0.033],
}
"""Step -> probabilities read off Figure 2a."""
PEAKS = (0.20, 0.28, 0.33, 0.36)
"""Of the four curves of Figure 2c."""
LOCAL_END, LOCAL_RANGE = np.array([0.217, 0.243, 0.266, 0.275]), 0.067
"""Last law of Figure 2c, and the distance from its lowest to its highest value."""
POINTS, SPACING = 86, 50
FIRST, LAST, MIDDLE = 50, 4300, 1000
RATE = 1e-4


def path(actor: Actor, inner_steps: int, interval: int) -> dict[int, FloatArray]:
    """Laws of the released actor, fitted to the prior, at the figure's steps."""
    rewards = np.array(FIGURE[LAST])
    laws = {}
    for step in range(SPACING, LAST + 1, SPACING):
        if step % interval == 0:
            actor = reinforce_step(actor, rewards, learning_rate=RATE, inner_steps=inner_steps)
        if step in FIGURE:
            laws[step] = actor.probabilities()
    return laws


def distance(laws: dict[int, FloatArray]) -> float:
    """Root mean square of the differences of log-probabilities."""
    steps = [np.log(laws[step]) - np.log(np.array(law)) for step, law in FIGURE.items()]
    return float(np.sqrt(np.mean(np.square(steps))))


def curves(runs: int, noise: float, inner_steps: int, seed: int = 0) -> FloatArray:
    """(runs, POINTS, 4) laws of as many local actors on constant rewards plus white noise."""
    generator = np.random.default_rng(seed)
    actor = Actor.start(np.full((runs, 4), 0.25))
    laws = np.empty((runs, POINTS, 4))
    for point in range(POINTS):
        rewards = LOCAL_END * np.maximum(1.0 + noise * generator.normal(size=(runs, 4)), 0.0)
        actor = reinforce_step(actor, rewards, learning_rate=RATE, inner_steps=inner_steps)
        laws[:, point] = actor.probabilities()
    return laws


def first_peak(curve: FloatArray, *, by_pairs: bool = False) -> float:
    """Highest autocorrelation of a curve after its first zero, linear trend taken off.

    Args:
        curve: (n,) values.
        by_pairs: Divide the sum of products at a lag by how many there are, up to a lag of n / 2;
            else by n at every lag, so that what is far apart counts less.
    """
    size = len(curve)
    time = np.arange(size)
    rest = curve - np.polyval(np.polyfit(time, curve, 1), time)
    correlation = np.correlate(rest, rest, mode="full")[size - 1 :]
    if by_pairs:
        correlation = (correlation * size / (size - time))[: size // 2]
    below = np.flatnonzero(correlation <= 0)
    return float(correlation[below[0] :].max() / correlation[0]) if len(below) else float("nan")


def pace(counts: Sequence[int]) -> list[list[str]]:
    """Rows of the first table: the released actor by how often and how far it moves."""
    start = fit_to_prior(SIZES / SIZES.sum())
    rows = []
    for interval in (50, 200):
        for inner in counts:
            laws = path(start, inner, interval)
            shown = (laws[FIRST][0], laws[MIDDLE][0], laws[MIDDLE][-1], distance(laws))
            rows.append([f"{interval}", f"{inner}", *(f"{value:.3f}" for value in shown)])
    shown = (FIGURE[FIRST][0], FIGURE[MIDDLE][0], FIGURE[MIDDLE][-1], 0.0)
    return [*rows, ["figure", "", *(f"{value:.3f}" for value in shown)]]


def cycle(runs: int, counts: Sequence[int], noises: Sequence[float]) -> list[list[str]]:
    """Rows of the second table: how often noise alone has peaks like the figure's."""
    rows = []
    for inner in counts:
        for noise in noises:
            laws = curves(runs, noise, inner)
            spread = np.median(laws.max(axis=(1, 2)) - laws.min(axis=(1, 2)))
            for divisor in ("n", "pairs"):
                pairs = divisor == "pairs"
                peaks = np.array(
                    [[first_peak(curve, by_pairs=pairs) for curve in run.T] for run in laws]
                )
                shares = [*(peaks >= np.array(PEAKS)).mean(axis=0)]
                shares.append((np.sort(peaks, axis=1) >= np.sort(PEAKS)).all(axis=1).mean())
                words = [f"{share:.1%}" for share in shares]
                rows.append([f"{inner}", f"{noise:.2f}", f"{spread:.3f}", divisor, *words])
    return [*rows, ["figure", "", f"{LOCAL_RANGE:.3f}", *[""] * 6]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    options = common.arguments(__doc__ or "", argv)
    quick = options.quick
    where = common.where("numpy")
    first = pace((200,) if quick else (200, 400, 800, 1600, 3200))
    common.table(
        ["updates each", "inner steps", "en at 50", "en at 1000", "sw at 1000", "distance"], first
    )
    noises = (0.1,) if quick else (0.02, 0.05, 0.1, 0.2)
    second = cycle(20 if quick else 500, (200,) if quick else (200, 800), noises)
    heads = [
        "inner steps",
        "noise",
        "range",
        "divided by",
        *(f"peak {peak}" for peak in PEAKS),
        "all four",
    ]
    common.table(heads, second)
    if options.json:
        common.write(options.json, where | {"pace": first, "cycle": second})


if __name__ == "__main__":
    main()
