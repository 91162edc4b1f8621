"""Maps a source's columns to the project's: picks them, checks every value, casts whole batches with Arrow kernels.

A field is fed by a column, by the first that exists of several, or by a ``{template}`` made of several columns. What
cannot be read without a guess is refused with the row it stands in. Leaves out reading files (``mathtune.sources``).
"""

import difflib
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from mathtune.errors import DataError
from mathtune.recipe_source import Columns
from mathtune.schemas import ORIGINS, TEST_ROWS, rows_schema

_LAST_MARK = r"(?s).*####[ \t]*(?P<answer>[^\n]*[^\s])"  # GSM8K: "#### N" ends the worked solution
_CSV_LABELS = {"True": True, "true": True, "False": False, "false": False}
_SHOWN = 5


@dataclass(frozen=True)
class Piece:
    """Some rows of a source, as they were read.

    Attributes:
        batch: the rows.
        where: the file or split they come from, for errors.
        first: position there of the first of them.
        untyped: whether every value is text because the format knows nothing else (CSV).
    """

    batch: pa.RecordBatch
    where: str
    first: int
    untyped: bool = False


@dataclass(frozen=True)
class ColumnMap:
    """The mapping of one table, training or test, for a task.

    Attributes:
        columns: the recipe's ``source.columns``.
        label_values: how labels that are not booleans are read, by ``str(value)``.
        task: ``"verifier"`` or ``"solver"``.
        table: ``"train"`` rows need a label (verifier) and carry no ID; ``"test"`` rows have an ID, their label is
            optional; of ``"both"`` kinds are the rows that a hold-out is drawn from: label needed, ID added.
    """

    columns: Columns
    label_values: dict[str, bool]
    task: str
    table: Literal["train", "test", "both"] = "train"

    @property
    def schema(self) -> pa.Schema:
        """Schema of the mapped rows."""
        return rows_schema(self.task) if self.table == "train" else TEST_ROWS

    def choose(self, names: list[str], where: str) -> dict[str, str]:
        """Which column or template feeds which field; a field that nothing feeds is left out.

        Args:
            names: the columns that exist.
            where: the file, for an error.

        Raises:
            DataError: a column that is needed does not exist; names the nearest one that does.
        """
        columns, verifier = self.columns, self.task == "verifier"
        wanted = {"question": (columns.question, True),
                  "answer": (columns.answer, verifier),  # a solver's answer may stand in its solution
                  "solution": (columns.solution, True),
                  "generator": (None if self.table == "test" else columns.generator, True),
                  "ID": (None if self.table == "train" else columns.id, True)}
        if verifier:
            wanted["is_correct"] = (columns.label or "is_correct", self.table != "test")
        if not verifier and columns.solution is None:
            raise DataError("a solver learns from solutions, and the recipe maps none", where="source.columns.solution",
                            remedy="name the column of worked solutions")
        chosen = {}
        for field, (spec, needed) in wanted.items():
            candidates = () if spec is None else (spec,) if isinstance(spec, str) else spec
            found = [name for name in candidates if set(_sources(name)) <= set(names)]
            if found:
                chosen[field] = found[0]
            elif candidates and needed:
                raise _missing(field, candidates, names, where)
        return chosen

    def needed(self, names: list[str], where: str) -> list[str]:
        """The source columns to read, each once, in their order in the source; raises as ``choose`` does."""
        used = {source for spec in self.choose(names, where).values() for source in _sources(spec)}
        return [name for name in names if name in used]

    def apply(self, piece: Piece, row_id: int) -> pa.Table:
        """The piece as rows of ``schema``; the first of them gets ``row_id``, and that ID if nothing feeds it.

        Raises:
            DataError: a value cannot be used; says which, in which row, and what to do.
        """
        names, rows = piece.batch.schema.names, piece.batch.num_rows
        chosen = self.choose(names, piece.where)
        numbered = pa.array(range(row_id, row_id + rows), pa.int64())
        fields: dict[str, pa.Array] = {"row_id": numbered, "ID": numbered}
        for field in ("question", "answer", "solution"):
            spec = chosen.get(field)
            fields[field] = _text(piece, spec, field) if spec else pa.array([""] * rows, pa.large_string())
        self._refuse_blank(fields["question"], "question", piece)
        if self.task == "solver":
            self._refuse_blank(fields["solution"], "solution", piece)
            if "answer" not in chosen:
                fields["answer"] = _final_answers(fields["solution"], piece)
            self._refuse_blank(fields["answer"], "answer", piece)
        fields["is_correct"] = pa.nulls(rows, pa.bool_())
        if "is_correct" in chosen:
            fields["is_correct"] = self._labels(piece, chosen["is_correct"])
        if "ID" in chosen:
            fields["ID"] = _ids(piece, chosen["ID"])
        return pa.table([fields[name] for name in self.schema.names], schema=self.schema)

    def origins(self, piece: Piece, row_id: int) -> pa.Table:
        """Who wrote the piece's solutions, as rows of ``schemas.ORIGINS``; the recipe must map ``columns.generator``.

        Raises:
            DataError: the column does not exist, or holds no text.
        """
        chosen = self.choose(piece.batch.schema.names, piece.where)
        numbered = pa.array(range(row_id, row_id + piece.batch.num_rows), pa.int64())
        return pa.table([numbered, _text(piece, chosen["generator"], "generator")], schema=ORIGINS)

    def _refuse_blank(self, texts: pa.Array, field: str, piece: Piece) -> None:
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
        if pc.any(blank).as_py():
            raise DataError(f"the {field} is empty", where=_rows(piece, blank),
                            remedy="remove or mend these rows; rows count from 0")

    def _labels(self, piece: Piece, name: str) -> pa.Array:
        column = piece.batch.column(name)
        if pa.types.is_boolean(column.type):
            labels, unread = column, None
        else:
            known = (_CSV_LABELS if piece.untyped else {}) | self.label_values
            values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            distinct = values.unique()
            read = [None if value is None else known.get(str(value)) for value in distinct.to_pylist()]
            labels = pa.array(read, pa.bool_()).take(pc.index_in(values, value_set=distinct))
            unread = pc.and_(pc.is_null(labels), pc.is_valid(values))
        if unread is not None and pc.any(unread).as_py():
            strange = values.filter(unread).unique().to_pylist()
            # Beside another label JSON's true and false have become text: then the other one is what is wrong.
            worst = [value for value in strange if str(value) not in ("True", "False")] or strange
            raise DataError(f"column {name}: the label {str(worst[0])!r} is neither true nor false",
                            where=_rows(piece, pc.is_in(values, value_set=pa.array(worst, values.type))),
                            remedy=_label_remedy({*map(str, strange), *self.label_values}))
        if self.table != "test" and labels.null_count:
            raise DataError(f"column {name}: the label is missing", where=_rows(piece, pc.is_null(labels)),
                            remedy="remove or mend these rows; rows count from 0")
        return labels


def _sources(spec: str) -> list[str]:
    """The columns that a name or template refers to."""
    return [field for _, field, _, _ in string.Formatter().parse(spec) if field is not None] if "{" in spec else [spec]


def _text(piece: Piece, spec: str, field: str) -> pa.Array:
    """The text of a column or template; null becomes the empty text. Only an answer may be a number."""
    if "{" not in spec:
        return _text_column(piece, spec, field)
    parts = []
    for literal, source, _, _ in string.Formatter().parse(spec):
        parts.append(pa.scalar(literal, pa.large_string()))
        if source is not None:
            parts.append(_text_column(piece, source, field))
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))


def _text_column(piece: Piece, name: str, field: str) -> pa.Array:
    column = piece.batch.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_null(kind) or (number and field == "answer")):
        raise DataError(f"column {name} holds {kind}, the {field} must be text", where=piece.where,
                        remedy=f"map another column, source.columns.{field}=NAME, or write this one as text")
    return pc.fill_null(column.cast(kind).cast(pa.large_string()), "")


def _final_answers(solutions: pa.Array, piece: Piece) -> pa.Array:
    answers = pc.struct_field(pc.extract_regex(solutions, _LAST_MARK), "answer")
    if answers.null_count:
        raise DataError("the solution does not end in '#### ANSWER', and no column gives the answer",
                        where=_rows(piece, pc.is_null(answers)), remedy="map one: source.columns.answer=NAME")
    return pc.utf8_trim_whitespace(answers)


def _ids(piece: Piece, name: str) -> pa.Array:
    column = piece.batch.column(name)
    try:
        ids = column.cast(pa.int64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            if pc.any(pc.not_equal(ids.cast(column.type), column)).as_py():
                raise pa.ArrowInvalid("007 or 0x7 would come back as 7")
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name} holds IDs that are not whole numbers", where=piece.where,
                        remedy="map another column, or none to number the rows from 0: source.columns.id") from error
    if ids.null_count:
        raise DataError(f"column {name}: the ID is missing", where=_rows(piece, pc.is_null(ids)),
                        remedy="map another column, or none to number the rows from 0: source.columns.id")
    return ids


def _rows(piece: Piece, mask: pa.Array) -> str:
    """``FILE, row 3`` or ``FILE, rows 3, 5, 8 ...`` for the rows where the mask is true."""
    found = pc.indices_nonzero(mask)
    shown = ", ".join(str(piece.first + position) for position in found[:_SHOWN].to_pylist())
    return f"{piece.where}, row{'s' if len(found) > 1 else ''} {shown}" + (" ..." if len(found) > _SHOWN else "")


def _missing(field: str, candidates: Iterable[str], names: list[str], where: str) -> DataError:
    absent = sorted({source for spec in candidates for source in _sources(spec)} - set(names))
    near = difflib.get_close_matches(absent[0], names, n=1, cutoff=0.5)
    key = {"is_correct": "label", "ID": "id"}.get(field, field)
    return DataError(f"there is no column {' or '.join(absent)}; there are: {', '.join(names)}", where=where,
                     remedy=f"name it in the recipe: source.columns.{key}={near[0] if near else 'NAME'}")


def _label_remedy(values: Iterable[str]) -> str:
    guesses = {"true", "yes", "y", "t", "1", "1.0", "correct", "right"}
    said = ", ".join(f'"{value}": {str(value.lower() in guesses).lower()}' for value in sorted(values)[:_SHOWN])
    return f"say how to read labels, e.g. 'source.label_values={{{said}}}'"
