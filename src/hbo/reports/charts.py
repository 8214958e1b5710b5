"""Line charts as inline SVG: drawn by Matplotlib, coloured by the page's style sheet.

Matplotlib draws with stand-in colours, which become CSS variables here. So one drawing serves light
and dark mode, needs no script, and prints. Charts hold numbers only: names stay in the HTML around
them, where the browser knows every script and direction of writing.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.errors import EnvironmentProblem
from hbo.reports.record import FloatArray
from hbo.reports.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW, CARD = (760, 270), (350, 230), (330, 150)

# Stand-in colours; each is replaced by the CSS variable of that name.
_STAND_INS = {
    "--chart-text": "#010203",
    "--chart-grid": "#010204",
    "--chart-axis": "#010205",
    "--chart-mark": "#010206",
    "--rest": "#010207",
    **{f"--s{slot}": f"#0110{slot:02x}" for slot in range(8)},
    **{f"--g{slot}": f"#0120{slot:02x}" for slot in range(6)},
}
_SETTINGS: dict[Any, Any] = {
    "font.size": 11.0,
    "font.family": "DejaVu Sans",  # Matplotlib brings it; the page's own font replaces it
    "svg.fonttype": "none",
    "svg.hashsalt": "hbo",
    "axes.unicode_minus": True,
    "text.usetex": False,
    "path.simplify": True,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        colour: Name of a CSS variable: ``--s0`` to ``--s7`` for subsets or policies, ``--g0`` to
            ``--g5`` for difficulty groups, ``--rest``.
        x: Optimiser steps.
        y: Values, NaN where there is none.
        title: What a pointer resting on the line is told; plain text.
        errors: Standard errors, drawn as bars.
        dashed: Whether it is dashed, which tells it apart without colour.
        steps: Whether a value holds until the next one.
        marker: Whether each value has a dot.
        faint: Whether it stands behind the others.
        key: Number that ties the line to its entry in the legend; None for no tie.
    """

    colour: str
    x: FloatArray
    y: FloatArray
    title: str = ""
    errors: FloatArray | None = None
    dashed: bool = False
    steps: bool = False
    marker: bool = False
    faint: bool = False
    key: int | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines over optimiser steps.

    Args:
        lines: What is drawn, the last on top.
        end: Right end of the axis of steps.
        percent: Whether values are shares.
        marks: Steps marked at the foot (updates of the policy).
        level: A horizontal reference line.
        floor: Lowest value that the axis shows in any case.
    """

    lines: Sequence[Line]
    end: float
    percent: bool = False
    marks: Sequence[float] = field(default=())
    level: float | None = None
    floor: float | None = None


class Charts:
    """Draws the charts of one page; ids are unique within it."""

    def __init__(self) -> None:
        self._drawn = 0

    def draw(self, panels: Sequence[Panel], size: tuple[int, int], description: str) -> str:
        """Draw panels under one another, sharing the axis of steps.

        Args:
            panels: From top to bottom.
            size: Width and height in CSS pixels at which text has its natural size.
            description: What a reader who cannot see the chart is told; plain text.

        Returns:
            One ``<svg>`` element.

        Raises:
            EnvironmentProblem: Matplotlib is not installed.
        """
        self._drawn += 1
        drawing = _draw(panels, size)
        titles = {line.key: line.title for panel in panels for line in panel.lines if line.title}
        return _inline(drawing, f"c{self._drawn}-", size, description, titles)

    def both(self, panel: Panel, description: str) -> str:
        """The same panel drawn for a wide screen and for a phone; the style sheet shows one."""
        wide = self.draw([panel], WIDE, description)
        narrow = self.draw([panel], NARROW, description)
        return f'<div class="for-wide">{wide}</div><div class="for-narrow">{narrow}</div>'


def smooth(values: FloatArray, weights: FloatArray, window: int) -> FloatArray:
    """A weighted running mean that passes over NaN.

    Args:
        values: (S,)
        weights: (S,) such as draws.
        window: How many values a mean reaches back over.

    Returns:
        (S,), NaN where the window holds no value.
    """
    known = np.isfinite(values) & (weights > 0)
    total = np.cumsum(np.where(known, values, 0.0) * np.where(known, weights, 0.0))
    weight = np.cumsum(np.where(known, weights, 0.0))
    reach = min(window, len(values))
    before = np.concatenate([np.zeros(reach), total[:-reach]]) if reach else total
    before_weight = np.concatenate([np.zeros(reach), weight[:-reach]]) if reach else weight
    span = weight - before_weight
    return np.where(span > 0, (total - before) / np.where(span > 0, span, 1.0), np.nan)


def _draw(panels: Sequence[Panel], size: tuple[int, int]) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem(
            "the report needs Matplotlib, which is not installed; pip install 'hbo[report]'"
        ) from None
    width, height = size
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        left, right, bottom, top, gap = 40, 10, 32, 8, 16
        each = (height - bottom - top - gap * (len(panels) - 1)) / len(panels)
        for index, panel in enumerate(panels):
            foot = bottom + (len(panels) - 1 - index) * (each + gap)
            axes = figure.add_axes(
                (left / width, foot / height, (width - left - right) / width, each / height)
            )
            _panel(axes, panel, last=index == len(panels) - 1)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return buffer.getvalue()


def _panel(axes: Axes, panel: Panel, *, last: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for line in panel.lines:
        _line(axes, line, panel.end)
    if panel.level is not None:
        axes.axhline(panel.level, color=_STAND_INS["--chart-mark"], lw=1, ls=(0, (2, 3)), zorder=1)
    end = max(panel.end, 1.0)
    axes.set_xlim(0, end)
    _limits(axes, panel)
    if panel.marks:
        axes.plot(
            [mark for mark in panel.marks if mark <= end],
            [0.0] * sum(mark <= end for mark in panel.marks),
            ls="none", marker="|", ms=7, mew=1.2, color=_STAND_INS["--chart-mark"],
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value else "step 0")
    )
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_STAND_INS["--chart-axis"])
    axes.tick_params(length=0, pad=5, colors=_STAND_INS["--chart-text"], labelbottom=last)
    axes.grid(axis="y", color=_STAND_INS["--chart-grid"], lw=1)
    axes.set_axisbelow(True)


def _line(axes: Axes, line: Line, end: float) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    if line.steps and len(x):
        x, y = np.append(x, max(end, x[-1])), np.append(y, y[-1])
    width = 1.0 if line.faint else 2.0
    crowded = len(x) > 40
    container = axes.errorbar(
        x, y, yerr=line.errors,
        color=_STAND_INS[line.colour], ls=(0, (4, 2)) if line.dashed else "solid", lw=width,
        errorevery=max(len(x) // 20, 1), elinewidth=1.1,
        marker="o" if line.marker and not crowded else "", ms=4.5, mew=0,
        alpha=0.45 if line.faint else None, zorder=2 if line.faint else 3,
        drawstyle="steps-post" if line.steps else "default",
    )  # fmt: skip
    if line.key is not None:
        data_line, caps, bars = container.lines
        for part in (data_line, *caps, *bars):
            if part is not None:  # Matplotlib leaves a line of markers out where there is none
                part.set_gid(f"series-{line.key}")


def _limits(axes: Axes, panel: Panel) -> None:
    low, high = axes.get_ylim()
    values = [np.asarray(line.y, dtype=float) for line in panel.lines]
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.array([])
    if not len(known):
        low, high = 0.0, 1.0
    if panel.floor is not None:
        low = min(panel.floor, float(known.min()) if len(known) else panel.floor)
    if high - low < 1e-9:
        high = low + (0.1 if panel.percent else max(abs(low) * 0.1, 0.1))
    axes.set_ylim(low, high)


# --- from Matplotlib's file to an element of the page --------------------------------------------


def _inline(
    drawing: str,
    prefix: str,
    size: tuple[int, int],
    description: str,
    titles: dict[int | None, str],
) -> str:
    body = drawing[drawing.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    body = body.replace("<defs>\n  </defs>", "")
    # The page's font: Matplotlib's names would win over the style sheet.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(
        r'<g id="series-(\d+)">', lambda found: _series(int(found.group(1)), titles), body
    )
    body = _only_used_ids(body, prefix)
    body = re.sub(r"<(?:path|text|use|rect)[^>]*>", _rounded, body)
    for name, colour in _STAND_INS.items():
        body = body.replace(colour, f"var({name})")
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    width, height = size
    label = html.escape(visible(description), quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>'


def _rounded(tag: re.Match[str]) -> str:
    """Coordinates to a hundredth of a pixel, which halves the page."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", tag.group(0))


def _series(key: int, titles: dict[int | None, str]) -> str:
    title = titles.get(key)
    text = f"<title>{html.escape(visible(title))}</title>" if title else ""
    return f'<g class="series series-{key}">{text}'


def _only_used_ids(body: str, prefix: str) -> str:
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{prefix}{found.group(1)}"' if found.group(1) in used else ""

    body = re.sub(r' id="([^"]*)"', renamed, body)
    body = re.sub(r"url\(#", f"url(#{prefix}", body)
    return re.sub(r'xlink:href="#', f'href="#{prefix}', body)
