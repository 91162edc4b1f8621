"""Charts of what was logged while links were trained: loss and learning rate of SFT, rewards and KL of GRPO."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mathtune.report.charts import ACCENT, MUTED, SECOND, Chart
from mathtune.run_record import LinkRecord

POINTS = 1500  # points of a curve in one chart, all links together; a page of a few hundred kB at most


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
    """One of the stacked axes of a chart of training."""

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


def training_chart(links: list[LinkRecord], panels: tuple[Panel, ...], name: str, title: str, width: int = 960,
                   height: int = 340) -> Chart | None:
    """What was logged while links were trained, end to end on one axis of steps. None where nothing was logged.

    Args:
        links: of one kind.
        panels: what to draw; a panel without a value is left out.
        name, title: of the chart.
        width, height: in CSS pixels at scale 1.
    """
    links = [link for link in links if link.training.steps]
    panels = tuple(panel for panel in panels
                   if any(_points(link, series)[0].size for link in links for series in panel.series))
    if not panels:
        return None
    lengths = [max(step.step for step in link.training.steps) for link in links]
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def draw(axes: np.ndarray) -> None:
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, links, starts, room=20 if ax is axes[0] and len(links) > 1 else 6)
        _name_links(axes[0], links, starts)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes[-1].xaxis.set_major_locator(MaxNLocator(8 if width > 600 else 4, integer=True, steps=[1, 2, 5, 10]))

    return Chart(name, title, f"{', '.join(panel.name for panel in panels)} over {starts[-1]:,} optimizer steps", width, height,
                 draw, tuple(panel.height for panel in panels))


def _draw_panel(ax: Axes, panel: Panel, links: list[LinkRecord], starts: np.ndarray, room: int) -> None:
    """One panel, with ``room`` pixels above it for the links' names."""
    for series in panel.series:
        _draw_series(ax, series, links, starts)
    for border in starts[1:-1]:
        ax.axvline(border, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)), alpha=0.7)
    ax.set_title(panel.name, loc="left", fontsize=11, color=MUTED, pad=room)
    ax.yaxis.set_major_locator(MaxNLocator(4 if panel.height > 1 else 2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(0, starts[-1])
    if (names := len(ax.get_legend_handles_labels()[1])) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=(room - 6) / 10.5, ncols=names,
                  handlelength=1.4, columnspacing=1.2)


def _draw_series(axes: Axes, series: Series, links: list[LinkRecord], starts: np.ndarray) -> None:
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
