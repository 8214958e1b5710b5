"""What a run came to, in plain sentences."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup, escape

from hbo.reports.record import RunRecord
from hbo.reports.text import count, duration, number, percent, plural, signed, visible

POLICY_WORDS = {
    "hbo": "HBO",
    "hbo-paper": "HBO as in the paper",
    "hbo-released": "HBO as released",
    "prop": "proportional mixing",
    "temp": "temperature mixing",
    "uni": "uniform mixing",
    "static": "fixed weights",
    "schedule": "a schedule",
    "replay": "a recorded run",
}


def bdi(name: str) -> Markup:
    """A user's name as markup: escaped, control characters shown, its direction kept to itself."""
    return Markup("<bdi>{}</bdi>").format(visible(name))


def isolated(text: str, names: Iterable[str]) -> Markup:
    """A sentence as markup; names that run right to left keep their direction to themselves.

    Args:
        text: May hold any of the names.
        names: Policies, subsets, settings.

    Example:
        >>> print(isolated("a < b", ["a"]))
        a &lt; b
    """
    turning = {visible(name) for name in names if _turns(name)}
    if not turning:
        return escape(visible(text))
    one_of = "|".join(re.escape(name) for name in sorted(turning, key=len, reverse=True))
    parts = re.split(f"({one_of})", visible(text))
    marked = [bdi(part) if part in turning else escape(part) for part in parts]
    return Markup("").join(marked)


def _turns(name: str) -> bool:
    return any(unicodedata.bidirectional(character) in {"R", "AL", "AN"} for character in name)


def policy_words(policy: str) -> str:
    """A policy's name as people say it."""
    return POLICY_WORDS.get(policy, policy)


def title(run: RunRecord) -> Markup:
    """What was trained, on how much, by which policy."""
    done = "fine-tuned" if run.finished else "being fine-tuned (not finished)"
    return Markup("{} {} on {} with {}").format(
        bdi(run.model), done, plural(len(run.subsets), "subset"), policy_words(run.policy)
    )


def sentences(run: RunRecord) -> list[Markup]:
    """What changed, what it cost, where the draws went, and what got worse."""
    said = [_loss(run), _accuracy(run), _cost(run), _moves(run), _worse(run)]
    if not run.finished:
        text = (
            f"This run has no summary: it was stopped or is going on (last step: {run.last_step})."
        )
        said.insert(0, Markup("{}").format(text))
    return [sentence for sentence in said if sentence]


def _loss(run: RunRecord) -> Markup:
    before, after = run.macro_loss
    if not (math.isfinite(before) and math.isfinite(after)):
        return Markup("")
    change = after - before
    verb = "stayed at" if abs(change) < 5e-4 else "fell" if change < 0 else "rose"
    if verb == "stayed at":
        return Markup("Held-out loss, averaged over subsets, <b>stayed at {}</b>.").format(
            number(after)
        )
    return Markup("Held-out loss, averaged over subsets, <b>{} from {} to {}</b> ({}%).").format(
        verb, number(before), number(after), signed(100 * change / before, 1) if before else ""
    )


def _accuracy(run: RunRecord) -> Markup:
    before, after = run.accuracy.macro
    if not math.isfinite(after):
        return Markup("")
    graded = int(np.isfinite(run.accuracy.after).sum())
    where = "" if graded == len(run.subsets) else f" over the {plural(graded, 'gradable subset')}"
    if not math.isfinite(before):
        return Markup("Accuracy{} is {}; it was not measured before.").format(
            where, percent(after, 1)
        )
    if percent(before, 1) == percent(after, 1):
        return Markup("Accuracy{} stayed at {}.").format(where, percent(after, 1))
    verb = "rose" if after > before else "fell"
    return Markup("Accuracy{} <b>{} from {} to {}</b>.").format(
        where, verb, percent(before, 1), percent(after, 1)
    )


def _cost(run: RunRecord) -> Markup:
    if not math.isfinite(run.cost):
        return Markup("")
    return Markup("Balancing took <b>{} of the wall time</b> ({} of {}).").format(
        percent(run.cost), duration(run.balance_seconds), duration(run.wall_seconds)
    )


def _moves(run: RunRecord) -> Markup:
    change = run.final - run.prior
    if not run.moved or not np.isfinite(change).any():
        return Markup("The shares of draws were fixed: this policy does not move them.")
    up, down = int(np.nanargmax(change)), int(np.nanargmin(change))
    words = "The probability of {} grew most ({} to {}), that of {} shrank most ({} to {})."
    return Markup(words).format(
        bdi(run.subsets[up]), percent(run.prior[up]), percent(run.final[up]),
        bdi(run.subsets[down]), percent(run.prior[down]), percent(run.final[down]),
    )  # fmt: skip


def _worse(run: RunRecord) -> Markup:
    change = run.loss.after - run.loss.before
    known = np.flatnonzero(np.isfinite(change))
    if not len(known):
        return Markup("")
    worse = sorted((k for k in known if change[k] > 5e-4), key=lambda k: -change[k])
    if not worse:
        return Markup("Every subset's held-out loss improved or stayed.")
    named = Markup(", ").join(
        Markup("{} ({})").format(bdi(run.subsets[k]), signed(change[k])) for k in worse[:3]
    )
    rest = f" and {count(len(worse) - 3)} more" if len(worse) > 3 else ""
    return Markup("Held-out loss <b>got worse on {} of {} subsets</b>: {}{}.").format(
        len(worse), len(known), named, rest
    )
