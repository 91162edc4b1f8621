"""The charts' common ground: one style, and a chart that is drawn as SVG for the page or as PNG for Prefect and W&B.

Drawn by matplotlib in the colours C0, C1 ... of a palette. The page's palette holds placeholders which become the style
sheet's variables, and text stands in the page's own font: the chart follows light and dark and stays crisp. Leaves out what
is drawn (``training_charts``, ``accuracy_charts``, ``verifier_charts``, ``solver_charts``), and tables, which are HTML.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, LINE, ACCENT, SECOND, PAPER = (f"C{i}" for i in range(6))
_VARIABLES = ("currentColor", "var(--muted)", "var(--line)", "var(--accent)", "var(--second)", "var(--paper)")
_PLACEHOLDERS = tuple(f"#0{i}0{i}0{i}" for i in range(1, 7))
_PRINTED = ("#1b1d21", "#5f6670", "#e3e5e8", "#0067a5", "#b8481a", "#ffffff")  # the style sheet's light colours
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mathtune", "font.size": 11, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.labelsize": 11, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "lines.solid_capstyle": "round", "legend.frameon": False, "legend.fontsize": 10.5, "legend.labelcolor": MUTED,
}
PNG_SCALE = 2  # pixels of a PNG for one of the page
_PNG_MARGIN = 10  # of these


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn when it is asked for.

    Attributes:
        name: its file name and the prefix of its ids on the page: letters, digits, dashes.
        title: of a few words.
        description: the same in words, for those who do not see it.
        width, height: in CSS pixels at scale 1.
        draw: fills the axes, one for each of ``rows``.
        rows: relative heights of the stacked axes, which share the horizontal one.
    """

    name: str
    title: str
    description: str
    width: int
    height: int
    draw: Callable[[np.ndarray], None]
    rows: tuple[float, ...] = (1.0,)

    def svg(self) -> str:
        """An SVG element for an HTML page: no prolog, colours and fonts from the page, ids of its own."""
        with _style(_PLACEHOLDERS):
            buffer = io.StringIO()
            self._figure().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _for_page(buffer.getvalue(), self.name, self.description)

    def png(self) -> bytes:
        """A PNG on white, for whoever shows no SVG."""
        with _style(_PRINTED):
            buffer = io.BytesIO()
            figure = self._figure()
            figure.patch.set_alpha(1)
            figure.get_layout_engine().set(w_pad=_PNG_MARGIN / 72, h_pad=_PNG_MARGIN / 72)
            figure.savefig(buffer, format="png", dpi=72 * PNG_SCALE, metadata={"Software": None})
        return buffer.getvalue()

    def _figure(self) -> Figure:
        """A transparent figure whose unit is a CSS pixel."""
        figure = Figure(figsize=(self.width / 72, self.height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots(len(self.rows), 1, sharex=True, squeeze=False, height_ratios=self.rows)[:, 0]
        for ax in axes:
            ax.patch.set_alpha(0)
        self.draw(axes)
        return figure


def percent_axis(axis, ticks: int = 5) -> None:
    """Shares as percent, on few round values."""
    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def count_axis(axis, ticks: int = 4) -> None:
    """Whole numbers with separated thousands; below zero without their sign, for what is drawn downwards."""
    axis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))


def mark(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style) -> None:
    """A small note at a place in data coordinates, moved by some pixels."""
    axes.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 10.5, "color": MUTED, **style})


def legend(axes: Axes, **style) -> None:
    """Names above the right end of the axes, where they cross no line."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, **{"ncols": 2, "handlelength": 1.8, **style})


def _style(palette: tuple[str, ...]) -> rc_context:
    return rc_context(_STYLE | {"axes.prop_cycle": cycler(color=palette)})


def _for_page(svg: str, name: str, description: str) -> str:
    svg = svg[svg.index("<svg"):]
    view = re.search(r'viewBox="[^"]*"', svg).group()
    svg = re.sub(r"^<svg[^>]*>", f'<svg class="chart" {view} role="img" aria-label="{escape(description)}">', svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # a style would hold for the page
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, variable in zip(_PLACEHOLDERS, _VARIABLES, strict=True):
        svg = svg.replace(placeholder, variable)
    return svg
