"""The table of a sweep: for the terminal, and as a Prefect artifact."""

from rich.console import Group
from rich.text import Text

from flows.fitting import Cell, Column, FittingTable, joined
from mathtune.figures import Interval
from mathtune.sweep import short_key, short_value
from mathtune.sweep_record import SweepRecord, TrialRecord

NOTE = "the highest was chosen on these very rows: its accuracy, and how far others are behind it, are told somewhat too large"
WRAPPED = {"accuracy": ("accuracy", "(95% interval)"), "trained": ("trained", "(of all)"),
           "against the highest": ("against", "the highest")}
SPARE = {"time": 2, "GPU peak": 3, "CPU peak": 3, "trained": 1}


def sweep_table(record: SweepRecord) -> Group:
    """A line a trial, in the order of the grid, the highest one bold; below it what the figures are to be held against."""
    rows = [cells(record, trial) for trial in record.trials]
    columns = [Column(WRAPPED.get(name, name), right=name != "verdict", spare=SPARE.get(name, 0)) for name in rows[0]]
    styles = ["bold" if trial.name == record.best else "dim" if trial.state != "done" else "" for trial in record.trials]
    table = FittingTable(f"{record.name}: {rows_text(record)}", columns, [list(row.values()) for row in rows], styles)
    return Group(table, *beside(record))


def beside(record: SweepRecord) -> list[Text]:
    """What a trial's accuracy is to be held against, and how far it is to be trusted."""
    lines = []
    if record.base:
        lines.append(Text(f"base        {joined(accuracy_text(record.base), ' ')}"))
    if record.majority is not None:
        lines.append(Text(f"majority    {record.majority:.1%} by always saying the more frequent label"))
    if sum(trial.accuracy is not None for trial in record.trials) > 1:
        lines.append(Text(NOTE, "dim"))
    return lines


def artifact_rows(record: SweepRecord) -> list[dict[str, str]]:
    """The same for Prefect's page, each trial by its name."""
    return [{"trial": trial.name, **{name: joined(cell, " ") for name, cell in cells(record, trial).items()}}
            for trial in record.trials]


def cells(record: SweepRecord, trial: TrialRecord) -> dict[str, Cell]:
    """A trial's cells by column."""
    values = {short_key(key): short_value(trial.values[key]) if key in trial.values else ""
              for key in dict.fromkeys(key for one in record.trials for key in one.values)}
    return {**values, "trained": trained_text(trial), "time": time_text(trial.seconds), memory_name(record): memory_text(trial),
            "accuracy": accuracy_text(trial.accuracy), "against the highest": versus_text(trial),
            "verdict": tuple((trial.verdict or trial.state).split(" ", 1))}


def rows_text(record: SweepRecord) -> str:
    done = [trial for trial in record.trials if trial.accuracy]
    rows = f", all on the same {done[0].accuracy.n:,} validation rows" if done else ""
    return f"{len(done)} of {len(record.trials)} trials{rows}"


def trained_text(trial: TrialRecord) -> Cell:
    """Trained parameters and their share of all."""
    if trial.trainable is None:
        return ""
    count = f"{trial.trainable / 1e6:.1f} M" if trial.trainable >= 1e6 else f"{trial.trainable / 1e3:.0f} k"
    return count, f"({trial.trainable / trial.parameters:.2%})"


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory_name(record: SweepRecord) -> str:
    """What the column of memory holds: a GPU's, or on a CPU that of the whole engine process."""
    return "GPU peak" if any(trial.peak_gib is not None for trial in record.trials) else "CPU peak"


def memory_text(trial: TrialRecord) -> str:
    peak = trial.peak_rss_gib if trial.peak_gib is None else trial.peak_gib
    return "" if peak is None else f"{peak:.2f} GiB"


def accuracy_text(accuracy: Interval | None) -> Cell:
    """The accuracy and its 95% interval."""
    return (f"{accuracy.value:.1%}", f"({accuracy.low:.1%} to {accuracy.high:.1%})") if accuracy else ""


def versus_text(trial: TrialRecord) -> Cell:
    """The difference in points, and Holm's p of it."""
    if trial.versus_best is None:
        return ""
    p = "p < 0.001" if trial.p_adjusted < 0.001 else f"p {trial.p_adjusted:.3f}"
    return f"{trial.versus_best.difference.value * 100:+.1f} points,", p
