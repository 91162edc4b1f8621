"""Parquet tables by position: streaming reads and writes, ranges, chosen rows, and a shuffle that fits in memory.

Every table that a stage writes goes through ``TableWriter``: row groups of a fixed size and unbroken arrays, so that
the same rows give the same bytes whatever batches they came in. Leaves out what the rows mean (``mathtune.schemas``).
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.errors import DataError, RangeError

ROW_GROUP = 16_384  # rows; a chunk of 20,000 then costs two or three row groups to read
BUCKET_BYTES = 64 * 2**20  # of one bucket of the shuffle; a few copies of it are alive at once


class TableWriter:
    """Writes one Parquet file from batches of any size, a row group at a time. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema):
        # Text hardly repeats once rows are shuffled: a dictionary would cost time and be dropped half-way.
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=False)
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, error_type, error, trace) -> None:
        if error_type is None and self._rows:
            self._write(pa.concat_tables(self._waiting))
        self._waiting = []
        self._writer.close()

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds rows of the writer's schema."""
        if rows.num_rows == 0:
            return  # even an empty slice would keep the table alive that it was cut from
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= ROW_GROUP:
            waiting = pa.concat_tables(self._waiting)
            full = self._rows - self._rows % ROW_GROUP
            for start in range(0, full, ROW_GROUP):
                self._write(waiting.slice(start, ROW_GROUP))
            self._waiting = [waiting.slice(full)]
            self._rows -= full

    def _write(self, table: pa.Table) -> None:
        # Unbroken arrays: the writer's page boundaries follow those of the chunks it is given.
        self._writer.write_table(table.cast(self._schema).combine_chunks(), row_group_size=ROW_GROUP)


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened for streaming; whatever is wrong with its bytes becomes a ``DataError`` naming it."""
    try:
        # Without pre-buffering a row group is read page by page: some files have one row group of a million rows.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError("the file does not exist", where=str(path)) from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"not a readable Parquet file ({reason})", where=str(path),
                        remedy="it may be cut off or damaged: fetch or write it again") from error


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def iterate_batches(path: Path, columns: Sequence[str] | None = None,
                    batch_rows: int = ROW_GROUP) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in order, in batches of at most ``batch_rows`` rows.

    Raises:
        DataError: the file is missing or damaged.
    """
    with open_parquet(path) as file:
        yield from file.iter_batches(batch_rows, columns=columns, use_threads=True)


def count_rows(path: Path) -> int:
    """Number of rows, from the file's footer alone.

    Raises:
        DataError: the file is missing or damaged.
    """
    with open_parquet(path) as file:
        return file.metadata.num_rows


def read_range(path: Path, start: int, end: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows ``[start, end)`` by position; reads only the row groups that hold them.

    Raises:
        RangeError: start is not below end, or the file has fewer than ``end`` rows.
        DataError: the file is missing or damaged.
    """
    with open_parquet(path) as file:
        _check_bounds(start, end, file.metadata.num_rows, path)
        offsets = _row_group_offsets(file)
        groups = np.flatnonzero((offsets[:-1] < end) & (offsets[1:] > start))
        table = file.read_row_groups(groups.tolist(), columns=columns)
        return table.slice(start - int(offsets[groups[0]]), end - start)


def take_rows(path: Path, positions: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows at ``positions`` (int64, any order, repeats allowed), in that order; one row group in memory at a time.

    Raises:
        RangeError: a position is not in the file.
        DataError: the file is missing or damaged.
    """
    positions = np.asarray(positions, dtype=np.int64)
    with open_parquet(path) as file:
        if len(positions) == 0:
            return file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)
        _check_bounds(int(positions.min()), int(positions.max()) + 1, file.metadata.num_rows, path)
        offsets = _row_group_offsets(file)
        group_of = np.searchsorted(offsets, positions, side="right") - 1
        parts, sources = [], []
        for group in np.unique(group_of):
            at = np.flatnonzero(group_of == group)
            parts.append(file.read_row_group(int(group), columns=columns).take(positions[at] - offsets[group]))
            sources.append(at)
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(sources)))


def reordered(path: Path, order: np.ndarray, scratch: Path) -> Iterator[pa.Table]:
    """The rows of ``path`` at positions ``order``, in that order, with bounded memory.

    Pass 1 appends every row to the bucket of its place in the order; pass 2 loads one bucket at a time and sorts it.

    Args:
        path: a Parquet file.
        order: int64 positions, each at most once; rows that are not named are dropped.
        scratch: an existing folder for the buckets (as large as the rows, uncompressed); left as it was.

    Yields:
        tables of one bucket each (about 64 MiB).
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="buckets-") as folder:
        rows = _rows_per_bucket(path)
        buckets = [Path(folder) / f"{number}.arrow" for number in range(-(-len(order) // rows))]
        _spill(path, order, rows, buckets)
        for number, bucket in enumerate(buckets):
            places = order[number * rows:(number + 1) * rows]
            with pa.memory_map(str(bucket)) as file:
                # A bucket holds its rows in source order, so a row's rank there is the rank of its position.
                yield pa.ipc.open_stream(file).read_all().combine_chunks().take(np.argsort(np.argsort(places)))
            bucket.unlink()


def _spill(path: Path, order: np.ndarray, rows: int, buckets: list[Path]) -> None:
    bucket_of = np.full(count_rows(path), -1, dtype=np.int32)
    bucket_of[order] = np.arange(len(order)) // rows
    with open_parquet(path) as file:
        schema = file.schema_arrow
    start = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(bucket), schema)) for bucket in buckets]
        for batch in iterate_batches(path):
            belongs = bucket_of[start:start + batch.num_rows]
            start += batch.num_rows
            by_bucket = np.argsort(belongs, kind="stable")
            batch = batch.take(pa.array(by_bucket))
            edges = np.searchsorted(belongs[by_bucket], np.arange(len(buckets) + 1))
            for writer, low, high in zip(writers, edges[:-1], edges[1:], strict=True):
                if high > low:
                    writer.write_batch(batch.slice(low, high - low))


def _rows_per_bucket(path: Path) -> int:
    with open_parquet(path) as file:
        metadata = file.metadata
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        row_bytes = max(1, size // max(1, metadata.num_rows))
    return max(ROW_GROUP, BUCKET_BYTES // row_bytes)


def _row_group_offsets(file: pq.ParquetFile) -> np.ndarray:
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _check_bounds(start: int, end: int, rows: int, path: Path) -> None:
    if not 0 <= start < end <= rows:
        raise RangeError(f"rows [{start}, {end}) are not within the table's {rows} rows", where=str(path),
                         remedy=f"ask for a range with 0 <= start < end <= {rows}")
