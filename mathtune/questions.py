"""When are two questions the same question? A normal form, a 64-bit key of it, and a seeded order of keys.

Two writings of one question must never stand on both sides of a split, so the normal form ignores case, white space,
Unicode form (NFKC) and thousands separators. It leaves out paraphrases: finding those is not a matter of text.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mathtune.tables import iterate_batches

_SPACE = r"\t\n\v\f\r\x{85}\p{Z}"
# Runs of white space, or a single one that is not a plain space: plain single spaces, the bulk, never match.
_UNTIDY_SPACE = rf"[{_SPACE}]{{2,}}|[\t\n\v\f\r\x{{85}}\x{{2028}}\x{{2029}}]"
_THOUSANDS = r"([0-9]),([0-9]{3})"


def normalise_question(text: str) -> str:
    """The normal form of one question: NFKC, lower case, single spaces, ``1,000`` written ``1000``."""
    return normal_forms(pa.array([text], pa.large_string()))[0].as_py()


def question_keys(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A 64-bit key of each question's normal form (XXH3 of its UTF-8 bytes).

    Equal normal forms give equal keys. Two different ones share a key with probability 2^-64: among a million
    questions any such pair has a chance of about 3e-8 (birthday bound), and would only keep two questions together.

    Args:
        column: n strings without nulls.

    Returns:
        uint64 array of n keys; the same on every machine.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    keys = [text_keys(normal_forms(chunk.cast(pa.large_string()))) for chunk in chunks]
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def normal_forms(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The normal form of each of n questions."""
    texts = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _UNTIDY_SPACE, " "))
    for _ in range(2):  # matches cannot overlap: of 1,000,000 the first pass sees every second comma
        texts = pc.replace_substring_regex(texts, _THOUSANDS, r"\1\2")
    return texts


def text_keys(texts: pa.LargeStringArray) -> np.ndarray:
    """A 64-bit key of each of n texts as it is written (uint64; XXH3 of its UTF-8 bytes)."""
    texts = pa.concat_arrays([texts])  # drops the offset of a slice
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int64)[:len(texts) + 1].tolist()
    view = memoryview(data or b"")
    digest = xxhash.xxh3_64_intdigest
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return np.fromiter((digest(view[low:high]) for low, high in pairs), np.uint64, len(texts))


def scan_questions(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys and labels of a stage's Parquet file, row by row, without reading its other columns.

    Returns:
        uint64 question keys (n), and bool labels (n), or None where the table has no ``is_correct``.
    """
    keys, labels = [], []
    for batch in iterate_batches(path, ["question", "is_correct"]):
        keys.append(question_keys(batch.column("question")))
        if "is_correct" in batch.schema.names:
            labels.append(batch.column("is_correct").to_numpy(zero_copy_only=False))
    return np.concatenate(keys), np.concatenate(labels) if labels else None


def scramble(values: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random uint64 numbers, one for each value: sorting by them is a seeded shuffle.

    A bijection of the values (SplitMix64's finalizer, Steele et al. 2014, over value + a constant of the seed), so
    equal values stay together and different ones never tie. Unlike numpy's generators it will never change.
    """
    start = np.array([seed % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    return _finalize(np.asarray(values).astype(np.uint64) + _finalize(start))


def _finalize(mixed: np.ndarray) -> np.ndarray:
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
