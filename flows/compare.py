"""``mathtune compare``: two systems on the same rows, drawn for a person. Computes nothing itself."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mathtune.comparison import ChangedRow, RowsCompared, Side, compare_scores, read_scored
from mathtune.figures import SURE, Comparison
from mathtune.files import write_atomically


def show_comparison(console: Console, first: str, second: str, runs: Path, examples: int, json_file: Path | None) -> None:
    """Prints how the second system differs from the first, and writes it as JSON where a file is named."""
    found = compare_scores(read_scored(first, runs), read_scored(second, runs), examples)
    if json_file:
        write_atomically(json_file, found.model_dump_json(indent=2) + "\n")
    console.print(sides_table(found))
    for side in (found.first, found.second):
        if side.left_out:
            console.print(f"left out    {side.left_out:,} rows that only {side.name} was scored on", highlight=False)
    for label, text in (("difference", difference_text(found.versus)), ("chance", chance_text(found.versus))):
        console.print(Text(f"{label:<12}{text}"), highlight=False)
    for colour, count, what, rows in (("green", found.versus.gained, "gained: only the second has them right", found.gained),
                                      ("red", found.versus.lost, "lost: only the first has them right", found.lost)):
        console.print()
        console.print(Text.assemble((f"{count:,} rows", f"bold {colour}"), f" {what}" + (", for example" if rows else "")))
        for row in rows:
            console.print(example(row, found, console.width))


def sides_table(found: RowsCompared) -> Table:
    """Accuracy of both on the common rows."""
    table = Table(title=f"{found.versus.n:,} common rows", title_justify="left")
    for column in ("", "link", "accuracy", "95% interval", "n"):
        table.add_column(column, justify="right" if column in ("accuracy", "95% interval", "n") else "left", overflow="fold")
    for side in (found.first, found.second):
        table.add_row(Text(side.name), Text(side.title), *accuracy_cells(side))
    return table


def accuracy_cells(side: Side) -> tuple[str, str, str]:
    accuracy = side.accuracy
    return f"{accuracy.value:.1%}", f"{accuracy.low:.1%} to {accuracy.high:.1%}", f"{accuracy.n:,}"


def difference_text(versus: Comparison) -> str:
    """The difference in points with its interval."""
    value, low, high = (100 * figure for figure in (versus.difference.value, versus.difference.low, versus.difference.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}, 95% interval)"


def chance_text(versus: Comparison) -> str:
    """McNemar's exact p, in words."""
    p = "p < 0.001" if versus.p < 0.001 else f"p = {versus.p:.3f}"
    if versus.gained == versus.lost == 0:
        return "both have the same rows right (p = 1)"
    if versus.p >= SURE:
        return f"chance alone could explain it (McNemar's exact {p})"
    return f"chance alone would hardly do this (McNemar's exact {p})"


def example(row: ChangedRow, found: RowsCompared, width: int) -> Text:
    """A row in three lines: the question as far as it fits, what is asked about it, what the two said."""
    question = " ".join(row.question.split())
    judged = {None: "right answer {}", True: "answer {}, which is right", False: "answer {}, which is wrong"}[row.label]
    asked = judged.format(row.answer)
    lines = (f"  row {row.row_id}: {question}", f"    {' '.join(asked.split())}",
             f"    {found.first.name}: {row.first}   {found.second.name}: {row.second}")
    return Text("\n").join(Text(line if len(line) <= width else line[:width - 1] + "…") for line in lines)
