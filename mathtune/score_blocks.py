"""A scoring's rows in blocks, each published when it is done: a job that was killed goes on at the first block that is not
there. Blocks are cut by number of rows alone, so that what is scored together does not depend on interruptions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.errors import Damaged, StoreError
from mathtune.folders import open_folders
from mathtune.jobs import Place
from mathtune.ranges import Range

TABLE, SAMPLES = "scores.parquet", "samples.parquet"


@dataclass(frozen=True)
class Scored:
    """What is known of some rows.

    Attributes:
        table: rows of ``schemas.VERDICTS`` or ``schemas.SOLUTIONS``.
        shortened: prompts that lost their middle.
        samples: rows of ``schemas.SAMPLES``; None where none were drawn.
    """

    table: pa.Table
    shortened: int = 0
    samples: pa.Table | None = None

    @classmethod
    def together(cls, blocks: list["Scored"]) -> "Scored":
        """Of several blocks, in their order."""
        samples = [block.samples for block in blocks if block.samples is not None]
        return cls(pa.concat_tables([block.table for block in blocks]), sum(block.shortened for block in blocks),
                   pa.concat_tables(samples) if samples else None)

    def write(self, folder: Path) -> None:
        """Writes ``scores.parquet`` and, where there are any, ``samples.parquet``."""
        pq.write_table(self.table, folder / TABLE, compression="zstd")
        if self.samples is not None:
            pq.write_table(self.samples, folder / SAMPLES, compression="zstd")


class ScoreBlocks:
    """The blocks of one scoring that are done.

    Args:
        place: where they lie.
    """

    def __init__(self, place: Place):
        self._folders = open_folders(place.url, Path(place.cache) if place.cache else None)
        self._name = place.name
        self._folders.sweep(place.name)

    def find(self, rows: Range) -> Scored | None:
        """A block that is done; a damaged one is set aside."""
        name = self._block(rows)
        try:
            found = self._folders.fetch(name)
        except Damaged as error:
            self._folders.set_aside(name, str(error))
            return None
        if found is None:
            return None
        samples = found.folder / SAMPLES
        return Scored(pq.read_table(found.folder / TABLE), found.manifest["facts"]["shortened"],
                      pq.read_table(samples) if samples.is_file() else None)

    def publish(self, rows: Range, score: Callable[[], Scored]) -> Scored:
        """Scores a block and publishes it."""
        scored = score()

        def build(folder: Path) -> dict[str, int]:
            scored.write(folder)
            return {"shortened": scored.shortened}

        try:
            self._folders.publish(self._block(rows), build, {"stage": "score-block"})
        except (FileNotFoundError, StoreError) as error:  # who scores the same was first, and has cleared the blocks away
            if not any(isinstance(cause, FileNotFoundError) for cause in (error, error.__cause__)):
                raise
        return scored

    def _block(self, rows: Range) -> str:
        return f"{self._name}/{rows.start:09d}-{rows.end:09d}"


def cut_blocks(rows: int, size: int) -> list[Range]:
    """Rows ``[0, rows)`` in blocks of ``size``, the last one smaller."""
    return [Range(start, min(start + size, rows)) for start in range(0, rows, size)]
