"""Charts of a solver: what drawing several completions brings. Its outcomes and marks are HTML tables."""

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from mathtune.figures import Interval, SampleMetrics
from mathtune.report.charts import ACCENT, MUTED, SECOND, Chart, mark, percent_axis
from mathtune.report.words import percent


def samples_chart(samples: SampleMetrics, greedy: Interval, width: int = 440, height: int = 300) -> Chart:
    """pass@k and majority@k over k with their 95% bands, and the greedy completion's accuracy on all rows."""

    def draw(axes: np.ndarray) -> None:
        (ax,) = axes
        for name, figures, colour, marker, dashes in (("pass@k", samples.pass_at, ACCENT, "o", "-"),
                                                      ("majority@k", samples.majority_at, SECOND, "s", "--")):
            ks = sorted(figures)
            ax.fill_between(ks, [figures[k].low for k in ks], [figures[k].high for k in ks], color=colour, alpha=0.18,
                            linewidth=0)
            ax.plot(ks, [figures[k].value for k in ks], dashes, color=colour, marker=marker, markersize=5.5, linewidth=1.8,
                    label=name)
        ax.axhline(greedy.value, color=MUTED, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
        mark(ax, f"greedy: {percent(greedy.value)}", (1, greedy.value), (0, -5), xycoords=("axes fraction", "data"),
             ha="right", va="top")
        ax.set_xscale("log", base=2)
        ks = sorted(samples.pass_at)
        ax.xaxis.set_major_locator(FixedLocator(ks if len(ks) <= 8 else [k for k in ks if k & (k - 1) == 0]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        percent_axis(ax.yaxis)
        ax.margins(y=0.12)
        ax.set_xlabel("k, completions of a problem")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handlelength=1.8)

    most = max(samples.pass_at)
    return Chart("samples", "Several completions of a problem",
                 f"pass@{most} {percent(samples.pass_at[most].value)}, majority@{most} "
                 f"{percent(samples.majority_at[most].value)}, greedy {percent(greedy.value)}", width, height, draw)
