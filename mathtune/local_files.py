"""Local Parquet, JSONL and CSV files: which of them are training and which test rows, and their rows in pieces.

Damage is found while reading and named with the file and, for text formats, the line. Leaves out what the columns
mean (``mathtune.columns``).
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from mathtune.columns import Piece
from mathtune.errors import DataError
from mathtune.recipe_source import Source
from mathtune.tables import ROW_GROUP, open_parquet

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_BLOCK = 2**23  # bytes of a text file that are read at a time

# Chooses the columns to read from those that exist (and the name of the file, for its errors).
Choose = Callable[[list[str], str], list[str]]


def find_files(source: Source) -> tuple[list[Path], list[Path]]:
    """Training and test files of a local source, each sorted by name.

    In a folder a split is the file ``SPLIT.suffix``, or the Hub's ``SPLIT-00000-of-00002.suffix`` and so on. Where no
    file is named after ``train_split``, all but the test files are training files.

    Raises:
        DataError: a file or split does not exist, or the folder holds no file of a known kind.
    """
    root = Path(source.path)
    if root.is_dir():
        present = sorted(path for path in root.iterdir() if path.is_file() and path.suffix in SUFFIXES)
        if not present:
            raise DataError("no Parquet, JSONL or CSV file in this folder", where=str(root),
                            remedy=f"files end in {', '.join(SUFFIXES)}")
    else:
        present = [_existing(root)]
    test = [_existing(Path(source.test_path))] if source.test_path else []
    if source.test_split:
        test = _of_split(present, source.test_split)
        if not test:
            raise DataError(f"no file is named after the split {source.test_split}", where=str(root),
                            remedy="give source.test_path, source.holdout, or one of these as source.test_split: "
                                   + ", ".join(path.stem for path in present))
    held = {path.resolve() for path in test}
    rest = [path for path in present if path.resolve() not in held]
    train = _of_split(rest, source.train_split) or rest
    if not train:
        raise DataError("the only file is the test file", where=str(root), remedy="give training rows in source.path")
    return train, test


def read_file(path: Path, choose: Choose) -> Iterator[Piece]:
    """The rows of one file, by its suffix, with the columns that ``choose`` asks for.

    Raises:
        DataError: the file is missing, empty, damaged, or of an unknown kind.
    """
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_jsonl, ".csv": _read_csv}
    first = 0
    for batch in readers[path.suffix](path, choose):
        if batch.num_rows:
            yield Piece(batch, str(path), first, untyped=path.suffix == ".csv")
            first += batch.num_rows
    if first == 0:
        raise DataError("the file has no rows", where=str(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError("the file does not exist", where=str(path), remedy="check source.path and source.test_path")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path.suffix or 'no suffix'} is not a known kind of file", where=str(path),
                        remedy=f"files end in {', '.join(SUFFIXES)}")
    return path


def _of_split(files: list[Path], split: str) -> list[Path]:
    return [path for path in files if re.fullmatch(rf"{re.escape(split)}(-\d+-of-\d+)?", path.stem)]


def _read_parquet(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        columns = choose(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(ROW_GROUP, columns=columns):
            batch.validate(full=True)  # text that is not UTF-8: how a damaged page without a checksum may look
            yield batch


def _read_jsonl(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    with open(path, "rb") as file:
        lines = enumerate(file, start=1)
        while block := list(itertools.islice(lines, ROW_GROUP)):
            rows = [_parse_line(line, number, path) for number, line in block if line.strip()]
            names = list(dict.fromkeys(name for row in rows for name in row))
            columns = choose(names, str(path)) if rows else []
            yield pa.record_batch(
                [_json_column([row.get(name) for row in rows], name, path) for name in columns], names=columns)


def _parse_line(line: bytes, number: int, path: Path) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON ({error})", where=f"{path}, line {number}",
                        remedy="each line holds one JSON object") from error
    if not isinstance(row, dict):
        raise DataError(f"a {type(row).__name__}, not an object", where=f"{path}, line {number}",
                        remedy="each line holds one JSON object with the columns as keys")
    return row


def _json_column(values: list, name: str, path: Path) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:  # kinds are mixed, say 3 and "x": as text
        if any(isinstance(value, dict | list) for value in values):
            raise DataError(f"column {name} holds lists or objects beside other values", where=str(path),
                            remedy="write it as text") from error
        return pa.array([None if value is None else str(value) for value in values])


def _read_csv(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    check_quotes(path)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        names = next(csv.reader(file))
    columns = choose(names, str(path))
    # All as text: the reader would guess a type from the first block and fail on a later one.
    options = {"read_options": pa.csv.ReadOptions(block_size=_BLOCK),
               "parse_options": pa.csv.ParseOptions(newlines_in_values=True),
               "convert_options": pa.csv.ConvertOptions(include_columns=columns,
                                                        column_types=dict.fromkeys(columns, pa.large_string()))}
    try:
        with pa.csv.open_csv(path, **options) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"not a readable CSV file ({reason})", where=_uneven_line(path, len(names)),
                        remedy="every record has as many fields as the header; quote one that holds a comma") from error


def check_quotes(path: Path) -> None:
    """Refuses a CSV file whose quotes do not pair up as RFC 4180 says; CSV readers take many such files silently.

    A quote opens a field only after a comma, a line's end or the start of the file, and closes it only before a comma,
    a line's end or the end of the file; a doubled quote closes and opens.

    Raises:
        DataError: names the line of the quote that is not closed, or that stands inside an unquoted field.
    """
    state = _Quotes()
    with open(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        before = b"\n"
        while block := file.read(_BLOCK):
            after = file.read(1)
            state.check(before + block + (after or b"\n"), path)
            before = block[-1:]
            if after:
                file.seek(-1, 1)
    if state.open:
        raise _bad_quote("a quote is opened and never closed", path, state.opened_on)


class _Quotes:
    """Where the scan of ``check_quotes`` stands between two blocks."""

    def __init__(self):
        self.open, self.opened_on, self.line = False, 0, 1

    def check(self, padded: bytes, path: Path) -> None:
        """Takes a block with the byte before it and the byte after it."""
        text = np.frombuffer(padded, np.uint8)
        quotes = np.flatnonzero(text[1:-1] == ord('"')) + 1
        opens = np.arange(len(quotes)) % 2 == int(self.open)
        neighbour = text[np.where(opens, quotes - 1, quotes + 1)]
        allowed = np.isin(neighbour, np.frombuffer(b',"\r\n', np.uint8))
        newlines = np.flatnonzero(text[1:-1] == ord("\n")) + 1
        if not allowed.all():
            bad = int(np.argmin(allowed))
            if opens[bad]:
                raise _bad_quote("a quote inside a field that does not begin with one", path,
                                 self._line_of(quotes[bad], newlines))
            began = self._line_of(quotes[bad - 1], newlines) if bad else self.opened_on
            raise _bad_quote("a quoted field is not closed before a comma or the end of a line", path, began)
        if len(quotes) and opens[-1]:
            self.opened_on = self._line_of(quotes[-1], newlines)
        self.open ^= bool(len(quotes) % 2)
        self.line += len(newlines)

    def _line_of(self, position: int, newlines: np.ndarray) -> int:
        return self.line + int(np.searchsorted(newlines, position))


def _bad_quote(what: str, path: Path, line: int) -> DataError:
    return DataError(what, where=f"{path}, line {line}",
                     remedy='quote fields that hold a quote, comma or line break, and double a quote in them: ""')


def _uneven_line(path: Path, fields: int) -> str:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        uneven = next((reader.line_num for row in reader if row and len(row) != fields), None)
    return f"{path}, line {uneven}" if uneven else str(path)
