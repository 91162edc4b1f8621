"""The report's pictures as inline SVG, drawn by matplotlib in colours that the page's style sheet decides.

A picture is drawn in placeholder colours which become CSS variables, and its text in the page's own font, so that it
follows light and dark and stays crisp. Leaves out the confusion matrix, which is an HTML table.
"""

import io
import logging
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

# Without a writable home matplotlib warns of a temporary folder, and on its first run of a font cache: noise here.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
from matplotlib import rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: E402

from mathtune.report.words import percent  # noqa: E402
from mathtune.run_record import LinkRecord, RunRecord, VerifierMetrics  # noqa: E402

INK, MUTED, LINE, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)",
        SECOND: "var(--second)"}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mathtune", "font.size": 11, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.labelsize": 11, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "lines.solid_capstyle": "round", "legend.frameon": False, "legend.fontsize": 10.5,
}
POINTS = 1500  # points of a curve in one picture, all links together; a page of a few hundred kB at most


@dataclass(frozen=True)
class Series:
    """One line of a panel: a field of ``Step`` or ``EvalStep``."""

    field: str
    name: str
    colour: str
    smooth: bool = False
    dashes: str = "-"


@dataclass(frozen=True)
class Panel:
    """One of the stacked axes of a picture of training."""

    name: str
    series: tuple[Series, ...]
    height: float = 1.0


SFT_PANELS = (
    Panel("loss", (Series("loss", "training", ACCENT, smooth=True), Series("eval_loss", "validation", SECOND)), 3.0),
    Panel("learning rate", (Series("learning_rate", "learning rate", MUTED),)),
)
GRPO_PANELS = (
    Panel("reward", (Series("reward", "reward", ACCENT, smooth=True),
                     Series("correctness", "right answer", SECOND, smooth=True, dashes="--"),
                     Series("format", "format", MUTED, smooth=True, dashes=":")), 1.6),
    Panel("KL", (Series("kl", "KL", ACCENT, smooth=True),)),
)


def accuracy_chart(record: RunRecord, width: int = 430, height: int = 320) -> str | None:
    """Accuracy of the base and after each link, with 95% intervals, and the majority baseline. None without figures."""
    scored = [("base", "base", record.base)] if record.base else []
    scored += [(str(link.number) if link.kind == "sft" else "GRPO", link.kind, link.metrics) for link in record.links]
    scored = [(name, kind, metrics) for name, kind, metrics in scored if metrics and metrics.rows]
    if not scored:
        return None
    with rc_context(_STYLE):
        figure, (axes,) = _figure(width, height, (1.0,))
        values, last = [metrics.accuracy.value for _, _, metrics in scored], scored[-1][2]
        baseline = last.majority if isinstance(last, VerifierMetrics) else 0.0
        axes.plot(values, color=ACCENT, linewidth=1.6, alpha=0.55, zorder=2)
        for x, (_, kind, metrics) in enumerate(scored):
            low, high = metrics.accuracy.low, metrics.accuracy.high
            colour = {"base": MUTED, "sft": ACCENT, "grpo": SECOND}[kind]
            axes.vlines(x, low, high, color=colour, linewidth=2.2, alpha=0.45, zorder=3)
            axes.plot(x, values[x], color=colour, marker="D" if kind == "grpo" else "o", markersize=7, zorder=4)
            if len(scored) <= 8:
                below = values[x] < baseline
                axes.annotate(percent(values[x]), (x, low if below else high), (0, -5 if below else 5),
                              textcoords="offset points", ha="center", va="top" if below else "bottom", fontsize=11)
        if isinstance(last, VerifierMetrics):
            axes.axhline(last.majority, color=MUTED, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
            axes.annotate(f"always the same verdict: {percent(last.majority)}", (1, last.majority), (0, -5),
                          xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="top",
                          color=MUTED, fontsize=10.5)
        every = -(-len(scored) // 12)
        axes.set_xticks(range(0, len(scored), every), [name for name, _, _ in scored][::every])
        axes.set_xlim(-0.5, len(scored) - 0.5)
        axes.margins(y=0.16)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.set_xlabel("after chunk")
        return _svg(figure, "accuracy", "Accuracy after each chunk with its 95% interval: "
                    + ", ".join(f"{name} {percent(value)}" for (name, _, _), value in zip(scored, values, strict=True)))


def training_chart(links: list[LinkRecord], panels: tuple[Panel, ...], name: str, width: int,
                   height: int) -> str | None:
    """What was logged while links were trained, end to end on one axis of steps. None where nothing was logged.

    Args:
        links: of one kind.
        panels: what to draw; a panel without a value is left out.
        name: of the picture on the page.
        width, height: in CSS pixels at scale 1.
    """
    links = [link for link in links if link.training.steps]
    panels = [panel for panel in panels
              if any(_points(link, series)[0].size for link in links for series in panel.series)]
    if not panels:
        return None
    lengths = [max(step.step for step in link.training.steps) for link in links]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    with rc_context(_STYLE):
        figure, axes = _figure(width, height, tuple(panel.height for panel in panels))
        for ax, panel in zip(axes, panels, strict=True):
            for series in panel.series:
                _draw(ax, series, links, starts)
            for border in starts[1:-1]:
                ax.axvline(border, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)), alpha=0.7)
            above = 20 if ax is axes[0] and len(links) > 1 else 6  # room for the links' names
            ax.set_title(panel.name, loc="left", fontsize=11, color=MUTED, pad=above)
            ax.yaxis.set_major_locator(MaxNLocator(4 if panel.height > 1 else 2))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.set_xlim(0, starts[-1])
            if (names := len(ax.get_legend_handles_labels()[1])) > 1:
                ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=(above - 6) / 10.5, ncols=names,
                          handlelength=1.4, columnspacing=1.2)
        _name_links(axes[0], links, starts)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes[-1].xaxis.set_major_locator(MaxNLocator(8 if width > 600 else 4, integer=True, steps=[1, 2, 5, 10]))
        return _svg(figure, name, f"{', '.join(panel.name for panel in panels)} over {starts[-1]:,} optimizer steps")


def _draw(axes: Axes, series: Series, links: list[LinkRecord], starts: np.ndarray) -> None:
    legend = series.name
    for link, start in zip(links, starts, strict=False):
        steps, values = _points(link, series)
        if not steps.size:
            continue
        steps, values = _thin(start + steps, values, max(30, POINTS // len(links)))
        marker = "o" if series.field == "eval_loss" or steps.size == 1 else None
        if series.smooth and steps.size > 20:
            axes.plot(steps, values, color=series.colour, linewidth=0.9, alpha=0.28)
            values = pd.Series(values).ewm(span=steps.size / 12).mean()
        axes.plot(steps, values, series.dashes, color=series.colour, linewidth=1.8, marker=marker, markersize=4.5,
                  label=legend)
        legend = "_nolegend_"


def _points(link: LinkRecord, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one series."""
    logged = link.training.evals if series.field == "eval_loss" else link.training.steps
    found = [(entry.step, getattr(entry, series.field)) for entry in logged]
    steps, values = np.array([pair for pair in found if pair[1] is not None], dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, at most ``most`` points."""
    if steps.size <= most:
        return steps, values
    return tuple(np.array([part.mean() for part in np.array_split(column, most)]) for column in (steps, values))


def _name_links(axes: Axes, links: list[LinkRecord], starts: np.ndarray) -> None:
    """The number of each link above its stretch of the axis, as many as there is room for."""
    if len(links) == 1:
        return
    every = -(-len(links) // 16)
    for index, (link, left, right) in enumerate(zip(links, starts, starts[1:], strict=False)):
        if index % every == 0:
            text = f"chunk {link.number}" if len(links) <= 5 else str(link.number)
            axes.annotate(text, ((left + right) / 2, 1), (0, 4), xycoords=("data", "axes fraction"),
                          textcoords="offset points", ha="center", va="bottom", color=MUTED, fontsize=10)


def _figure(width: int, height: int, ratios: tuple[float, ...]) -> tuple[Figure, np.ndarray]:
    """A transparent figure whose unit is a CSS pixel, with stacked axes."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for ax in axes:
        ax.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for an HTML page: no prolog, colours and fonts from the page, ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    view = re.search(r'viewBox="[^"]*"', svg).group()
    svg = re.sub(r"^<svg[^>]*>", f'<svg class="chart" {view} role="img" aria-label="{description}">', svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # a style would hold for the page
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, colour in _CSS.items():
        svg = svg.replace(placeholder, colour)
    return svg
