"""The table of a sweep: for the terminal, and as a Prefect artifact."""

from rich import box
from rich.table import Table
from rich.text import Text

from mathtune.sweep import short_key, short_value
from mathtune.sweep_record import SweepRecord, TrialRecord


def sweep_table(record: SweepRecord) -> Table:
    """A line a trial, in the order of the grid; the best one bold."""
    table = Table(title=f"{record.name}: {rows_text(record)}", title_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False, collapse_padding=True)
    rows = [cells(record, trial) for trial in record.trials]
    for column in rows[0]:
        words = column == "verdict"
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for trial, row in zip(record.trials, rows, strict=True):
        style = "bold" if trial.name == record.best else "dim" if trial.state != "done" else ""
        table.add_row(*(Text(text.replace(", ", "\n", 1)) for text in row.values()), style=style)
    return table


def artifact_rows(record: SweepRecord) -> list[dict[str, str]]:
    """The same for Prefect's page, each trial by its name."""
    return [{"trial": trial.name, **cells(record, trial)} for trial in record.trials]


def cells(record: SweepRecord, trial: TrialRecord) -> dict[str, str]:
    """A trial's texts by column."""
    values = {short_key(key): short_value(trial.values[key]) if key in trial.values else ""
              for key in dict.fromkeys(key for one in record.trials for key in one.values)}
    return {**values, "trained": trained_text(trial), "time": time_text(trial.seconds), memory_name(record): memory_text(trial),
            "accuracy": accuracy_text(trial), "against best": versus_text(trial), "verdict": trial.verdict or trial.state}


def rows_text(record: SweepRecord) -> str:
    done = [trial for trial in record.trials if trial.accuracy]
    rows = f", all on the same {done[0].accuracy.n:,} validation rows" if done else ""
    return f"{len(done)} of {len(record.trials)} trials{rows}"


def trained_text(trial: TrialRecord) -> str:
    """Trained parameters and their share of all."""
    if trial.trainable is None:
        return ""
    count = f"{trial.trainable / 1e6:.1f} M" if trial.trainable >= 1e6 else f"{trial.trainable / 1e3:.0f} k"
    return f"{count}, {trial.trainable / trial.parameters:.2%}"


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


def accuracy_text(trial: TrialRecord) -> str:
    accuracy = trial.accuracy
    return f"{accuracy.value:.1%}, {accuracy.low * 100:.1f} to {accuracy.high * 100:.1f}" if accuracy else ""


def versus_text(trial: TrialRecord) -> str:
    """The difference in points, and Holm's p of it."""
    if trial.versus_best is None:
        return ""
    p = "p < 0.001" if trial.p_adjusted < 0.001 else f"p {trial.p_adjusted:.3f}"
    return f"{trial.versus_best.difference.value * 100:+.1f}, {p}"
