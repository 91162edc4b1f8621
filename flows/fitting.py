"""A table that fits its terminal: figures are never cut. Where it is narrow, cells stand in two lines; then columns go."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

Cell = str | Text | tuple[str, ...]  # a tuple: parts that may stand below each other
WIDE = 10_000


@dataclass(frozen=True)
class Column:
    """A column of a ``FittingTable``.

    Attributes:
        spare: 0: always shown; of the others those of the highest number are left out first.
    """

    name: Cell
    right: bool = False
    spare: int = 0


class FittingTable:
    """Rows of texts under their columns.

    Args:
        styles: of each row, if they differ.
    """

    def __init__(self, title: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]],
                 styles: Sequence[str] | None = None):
        self.title, self.columns, self.rows = title, columns, rows
        self.styles = styles or [""] * len(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        spare = sorted((column for column in self.columns if column.spare), key=lambda column: -column.spare)
        layouts = [(" ", 0), *(("\n", count) for count in range(len(spare) + 1))]
        for between, count in layouts:
            table = self._table(between, spare[:count])
            if console.measure(table, options=options.update(max_width=WIDE)).maximum <= options.max_width:
                break
        yield table

    def _table(self, between: str, left_out: list[Column]) -> Table:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
                      caption_justify="left")
        if left_out:
            names = ", ".join(joined(column.name, " ") for column in left_out)
            table.caption = f"left out, for the width: {names}"
        shown = [place for place, column in enumerate(self.columns) if column not in left_out]
        for column in (self.columns[place] for place in shown):
            table.add_column(Text(joined(column.name, between)), justify="right" if column.right else "left", overflow="fold")
        for row, style in zip(self.rows, self.styles, strict=True):
            cells = [row[place] for place in shown]
            table.add_row(*(cell if isinstance(cell, Text) else Text(joined(cell, between)) for cell in cells), style=style)
        return table


def joined(cell: Cell, between: str) -> str:
    """A cell as plain text."""
    return between.join(cell) if isinstance(cell, tuple) else str(cell)
