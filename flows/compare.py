"""``mathtune compare``: two systems on the same rows, drawn for a person. Computes nothing itself."""

from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flows.fitting import Column, FittingTable
from mathtune.comparison import SHORT, ChangedRow, RowsCompared, Side, compare_scores, read_scored
from mathtune.errors import RecipeError
from mathtune.figures import SURE, Comparison
from mathtune.files import write_atomically


def show_comparison(console: Console, first: str, second: str, runs: Path, examples: int, json_file: Path | None) -> None:
    """Prints how the second system differs from the first, and writes it as JSON where a file is named.

    Raises:
        RecipeError: the number of examples is none.
    """
    if examples < 0:
        raise RecipeError("so many rows cannot be shown", where=f"--examples {examples}", remedy="--examples 0 or more")
    found = compare_scores(read_scored(first, runs), read_scored(second, runs), examples)
    if json_file:
        write_atomically(json_file, found.model_dump_json(indent=2) + "\n")
    console.print(sides_table(found))
    console.print(labelled([
        *(("left out", f"{side.left_out:,} rows that only {side.name} was scored on")
          for side in (found.first, found.second) if side.left_out),
        ("difference", difference_text(found.versus)), ("chance", chance_text(found.versus))]))
    for colour, count, what, rows in (("green", found.versus.gained, "gained: only the second has them right", found.gained),
                                      ("red", found.versus.lost, "lost: only the first has them right", found.lost)):
        console.print()
        console.print(Text.assemble((f"{count:,} rows", f"bold {colour}"), f" {what}" + (", for example" if rows else "")))
        for row in rows:
            console.print(example(row, found))


def sides_table(found: RowsCompared) -> FittingTable:
    """Accuracy of both on the common rows."""
    columns = [Column(""), Column("link"), Column(("accuracy", "(95% interval)"), right=True)]
    return FittingTable(f"{found.versus.n:,} common rows", columns,
                        [(side.name, side.title, accuracy_cell(side)) for side in (found.first, found.second)])


def accuracy_cell(side: Side) -> tuple[str, str]:
    """The accuracy and its 95% interval."""
    return f"{side.accuracy.value:.1%}", f"({side.accuracy.low:.1%} to {side.accuracy.high:.1%})"


def labelled(lines: list[tuple[str, str]], indent: int = 0) -> Padding:
    """Texts behind their labels; where one does not fit it goes on below itself."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=10, overflow="fold")
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(Text(label), Text(text))
    return Padding(grid, (0, 0, 0, indent))


def difference_text(versus: Comparison) -> str:
    """The difference in points with its interval."""
    value, low, high = (100 * figure for figure in (versus.difference.value, versus.difference.low, versus.difference.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}, 95% interval)"


def chance_text(versus: Comparison) -> str:
    """The p of the exact paired test, in words."""
    p = "p < 0.001" if versus.p < 0.001 else f"p = {versus.p:.3f}"
    if versus.gained == versus.lost == 0:
        return "both have the same rows right (p = 1)"
    if versus.p >= SURE:
        return f"chance alone could explain it (exact paired test, {p})"
    return f"chance alone would hardly do this (exact paired test, {p})"


def example(row: ChangedRow, found: RowsCompared) -> Group:
    """A row: the question, what is asked about it, and what each of the two said."""
    question = " ".join(row.question.split()) + ("…" if len(row.question) == SHORT else "")
    judged = {None: "right answer {}", True: "answer {}, which is right", False: "answer {}, which is wrong"}[row.label]
    asked = judged.format(row.answer)
    return Group(Padding(Text(f"row {row.row_id}: {question}"), (0, 0, 0, 2)),
                 Padding(Text(" ".join(asked.split())), (0, 0, 0, 4)),
                 labelled([(found.first.name, row.first), (found.second.name, row.second)], indent=4))
