"""Tokenised rows as a table: made once a range and kept, read by every training of it.

One Parquet file, ``tokens.parquet``: ``row_id`` int64, ``input_ids`` list<int32> (prompt and completion),
``prompt_length`` int32. In memory the ids stand one example behind the other in one array.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.prompts import Examples

FILE = "tokens.parquet"
SCHEMA = pa.schema([("row_id", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("prompt_length", pa.int32())])


@dataclass(frozen=True)
class Tokens:
    """Tokenised examples.

    Attributes:
        row_ids: int64 (examples,).
        ids: int32 (tokens,), all examples' ids, one behind the other.
        offsets: int64 (examples + 1,), where each example's ids begin and end.
        prompt_lengths: int32 (examples,), how many of an example's first ids are prompt, without loss.
    """

    row_ids: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray

    @classmethod
    def of_examples(cls, examples: Examples) -> "Tokens":
        """Of rows that have just been tokenised."""
        lengths = np.array([len(ids) for ids in examples.input_ids], dtype=np.int64)
        return cls(np.array(examples.row_ids, dtype=np.int64), np.concatenate(examples.input_ids).astype(np.int32),
                   np.concatenate([[0], np.cumsum(lengths)]), np.array(examples.prompt_lengths, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.row_ids)

    def of(self, example: int) -> np.ndarray:
        """One example's ids, int32."""
        return self.ids[self.offsets[example]:self.offsets[example + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every example, int64 (examples,)."""
        return np.diff(self.offsets)

    @property
    def label_tokens(self) -> int:
        """How many tokens have a loss."""
        return len(self.ids) - int(self.prompt_lengths.sum())

    @cached_property
    def shared_prefix(self) -> int:
        """Tokens with which every prompt begins, without the last of the shortest prompt: a label's loss is read there."""
        if not len(self):
            return 0
        longest = int(self.prompt_lengths.min()) - 1
        starts = self.offsets[:-1]
        first = self.ids[:longest]
        for place in range(longest):
            if (self.ids[starts + place] != first[place]).any():
                return place
        return max(longest, 0)


def write_tokens(examples: Examples, path: Path) -> None:
    """Writes tokenised rows as a Parquet file."""
    columns = [pa.array(examples.row_ids, pa.int64()), pa.array(examples.input_ids, pa.list_(pa.int32())),
               pa.array(examples.prompt_lengths, pa.int32())]
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), path, compression="zstd")


def read_tokens(path: Path, limit: int | None = None) -> Tokens:
    """The table in a file, or its first ``limit`` rows."""
    table = pq.read_table(path, schema=SCHEMA).slice(0, limit).combine_chunks()
    lists = table["input_ids"].combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    return Tokens(table["row_id"].to_numpy(), lists.flatten().to_numpy(),
                  np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), table["prompt_length"].to_numpy())
