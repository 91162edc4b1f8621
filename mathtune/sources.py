"""The first stage: rows of a Hub data set, local files or the generator become ``train.parquet`` and ``test.parquet``.

Arrow batches flow from the reader through the column map into Parquet; at no time do all rows live in memory. Leaves
out how each kind is read (``mathtune.local_files``, ``mathtune.hub``) and what columns mean (``mathtune.columns``).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mathtune import hub
from mathtune.columns import ColumnMap, Piece
from mathtune.digests import digest_file, digest_value
from mathtune.errors import DataError
from mathtune.local_files import find_files, read_file
from mathtune.questions import scan_questions
from mathtune.recipe_source import Source
from mathtune.schemas import ORIGINS, TEST_ROWS, rows_schema
from mathtune.split import draw_rows
from mathtune.tables import TableWriter, iterate_batches

FORMAT = 1  # raised when the same source would be read into other rows than before
HOLDOUT_SEED = 0


def pin_source(source: Source) -> Source:
    """The source with its Hub revision replaced by the commit it stands for now; others as they are.

    Pin once and give the pinned source to ``source_identity`` and ``read_source``: a branch may move between the two.

    Raises:
        DataError: the Hub knows no such data set or revision.
        MachineError: the Hub cannot be reached.
    """
    if source.hub is None:
        return source
    return source.model_copy(update={"revision": hub.resolve_commit(source.hub, source.revision)})


def source_identity(source: Source, task: str) -> dict[str, Any]:
    """All that decides the rows which ``read_source`` writes, as JSON-able values for the artifact's key.

    Local files count by name and SHA-256, a Hub data set by its commit, the generator by its version. How a Hub data
    set is read (whole or streamed) does not count: the rows are the same.

    Raises:
        DataError: a file, split, data set or revision does not exist.
        MachineError: the Hub cannot be reached (a revision that is a commit, 40 hex digits, needs no network).
    """
    settings = source.model_dump(mode="json", exclude={"path", "test_path", "streaming", "generator"})
    if source.columns.generator is None:  # a source that maps none is what it was before there was such a column
        del settings["columns"]["generator"]
    content: dict[str, Any] = {}
    if source.path:
        train, test = find_files(source)
        content = {kind: [{"name": path.name, "sha256": digest_file(path)} for path in files]
                   for kind, files in (("train", train), ("test", test))}
    elif source.hub:
        settings["revision"] = hub.resolve_commit(source.hub, source.revision)
    else:
        from mathtune.demo import problems
        content = {"generator": source.generator.model_dump(), "version": digest_value(problems.VERSION)}
    return {"format": FORMAT, "task": task, "source": settings, "content": content}


def read_source(source: Source, task: str, folder: Path) -> dict[str, Any]:
    """Reads, maps and checks the rows and writes ``train.parquet`` and ``test.parquet``, and beside them ``origins.parquet``
    (``schemas.ORIGINS``) where the recipe maps a column of generators.

    ``row_id`` is a row's position in the source's training (or test) split, ``ID`` the test rows' number or the value
    of ``columns.id``. Without test rows of its own, exactly ``source.holdout`` rows are drawn from the training rows
    by whole questions, stratified by label, before any balancing; surplus rows of the drawn questions are set aside
    (the rule of ``mathtune.split.draw_rows``). ``source.limit`` counts the rows read, before the hold-out.

    Args:
        source: where the rows come from; see ``pin_source``.
        task: ``"verifier"`` (rows carry a label) or ``"solver"``.
        folder: where the files are written.

    Returns:
        facts: ``rows``, ``test_rows``, ``set_aside`` (rows), ``empty_answers`` (training rows whose answer is
        empty), ``columns`` (which source column or template feeds which field) and, for a verifier, ``classes`` and
        ``test_classes``: rows of each label.

    Raises:
        DataError: what the source holds cannot be used; names the file and row, and says what to do.
        MachineError: the Hub cannot be reached, or stopped half-way.
    """
    mapped = folder / "mapped.parquet"
    columns = ColumnMap(source.columns, source.label_values, task, "both" if _holds_out(source) else "train")
    train = _Tally()
    with TableWriter(mapped, columns.schema) as writer, _origins_writer(source, folder) as origins:
        for piece in _limited(_pieces(source, "train", columns), source.limit):
            table = columns.apply(piece, train.rows)
            if origins:
                origins.write(columns.origins(piece, train.rows))
            train.add(table, columns.choose(piece.batch.schema.names, piece.where))
            writer.write(table)
    if _holds_out(source):
        return _hold_out(source, task, mapped, folder) | {"columns": train.columns}
    mapped.rename(folder / "train.parquet")
    columns = ColumnMap(source.columns, source.label_values, task, "test")
    test = _Tally()
    with TableWriter(folder / "test.parquet", TEST_ROWS) as writer:
        for piece in _pieces(source, "test", columns):
            table = columns.apply(piece, test.rows)
            test.add(table, {})
            writer.write(table)
    _check_ids(np.concatenate(test.ids), source)
    _check_order(np.concatenate(test.ids), source)
    return _facts(task, train, test, set_aside=0) | {"columns": train.columns}


class _Tally:
    """Counts of the rows that went by."""

    def __init__(self):
        self.rows, self.empty_answers, self.columns = 0, 0, {}
        self.classes = {"true": 0, "false": 0, "unknown": 0}
        self.ids: list[np.ndarray] = []

    def add(self, table: pa.Table, columns: dict[str, str]) -> None:
        self.rows += table.num_rows
        self.columns |= columns
        self.empty_answers += pc.sum(pc.equal(pc.utf8_length(table["answer"]), 0)).as_py() or 0
        if "is_correct" in table.column_names:
            true = pc.sum(table["is_correct"]).as_py() or 0
            unknown = table["is_correct"].null_count
            for label, count in (("true", true), ("unknown", unknown), ("false", table.num_rows - true - unknown)):
                self.classes[label] += count
        if "ID" in table.column_names:
            self.ids.append(table["ID"].to_numpy())


def _hold_out(source: Source, task: str, mapped: Path, folder: Path) -> dict[str, Any]:
    keys, labels = scan_questions(mapped)
    held, set_aside = draw_rows(keys, labels if task == "verifier" else None, source.holdout, HOLDOUT_SEED,
                                where="source.holdout", remedy="hold out fewer rows: source.holdout=N")
    train, test, schema, start = _Tally(), _Tally(), rows_schema(task), 0
    with TableWriter(folder / "train.parquet", schema) as first, TableWriter(folder / "test.parquet",
                                                                             TEST_ROWS) as second:
        for batch in iterate_batches(mapped):
            here = slice(start, start + batch.num_rows)
            start += batch.num_rows
            rows = pa.table(batch.filter(pa.array(~(held | set_aside)[here]))).select(schema.names)
            tests = pa.table(batch.filter(pa.array(held[here])))
            if source.columns.id is None:
                numbers = pa.array(np.arange(test.rows, test.rows + tests.num_rows))
                tests = tests.set_column(tests.schema.get_field_index("ID"), "ID", numbers)
            train.add(rows, {})
            test.add(tests, {})
            first.write(rows)
            second.write(tests)
    mapped.unlink()
    _check_ids(np.concatenate(test.ids), source)
    return _facts(task, train, test, set_aside=int(set_aside.sum()))


def _facts(task: str, train: _Tally, test: _Tally, set_aside: int) -> dict[str, Any]:
    facts = {"rows": train.rows, "test_rows": test.rows, "set_aside": set_aside, "empty_answers": train.empty_answers}
    if task == "verifier":
        facts["classes"] = {label: train.classes[label] for label in ("true", "false")}
        facts["test_classes"] = test.classes
    return facts


def _origins_writer(source: Source, folder: Path) -> TableWriter | nullcontext:
    return TableWriter(folder / "origins.parquet", ORIGINS) if source.columns.generator else nullcontext()


def _holds_out(source: Source) -> bool:
    return source.holdout > 0 and source.generator is None


def _pieces(source: Source, kind: str, columns: ColumnMap) -> Iterator[Piece]:
    """The training or test rows (``kind``) of a source."""
    if source.path:
        train, test = find_files(source)
        for path in train if kind == "train" else test:
            yield from read_file(path, columns.needed)
    elif source.hub:
        yield from hub.read_split(source, source.train_split if kind == "train" else source.test_split)
    else:
        from mathtune.demo import problems
        generator = source.generator
        rows = generator.rows if kind == "train" else generator.test_rows
        table = problems.rows(columns.task, rows, generator.seed, kind)
        first = 0
        for batch in table.to_batches():
            yield Piece(batch, f"generator, {kind} rows", first)
            first += batch.num_rows


def _limited(pieces: Iterator[Piece], limit: int | None) -> Iterator[Piece]:
    left = limit
    for piece in pieces:
        if left is None:
            yield piece
            continue
        yield Piece(piece.batch.slice(0, left), piece.where, piece.first, piece.untyped)
        left -= piece.batch.num_rows
        if left <= 0:
            return


def _check_ids(ids: np.ndarray, source: Source) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        at = int(np.argmax(counts > 1))
        raise DataError(f"the ID {values[at]} stands on {counts[at]} test rows", where=f"column {source.columns.id}",
                        remedy="map a column of unique IDs, or none to number the rows from 0: source.columns.id")


def _check_order(ids: np.ndarray, source: Source) -> None:
    """A named test split's IDs go up one by one: a gap or a swap would become a submission that a judge refuses."""
    odd = np.flatnonzero(np.diff(ids) != 1)
    if len(odd):
        at = int(odd[0])
        raise DataError(f"the ID {ids[at + 1]} follows {ids[at]}", where=f"column {source.columns.id}, test row {at + 1}",
                        remedy="sort the test rows and fill the gap, or leave source.columns.id out to number them from 0")
