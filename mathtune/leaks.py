"""Questions that stand in more than one part of the data: the same text, the same normal form, nearly the same words.

One part is streamed past the questions of the others, so that only those others (validation and test rows, the smaller
parts) are held in memory, with eight-byte keys of what was seen. Leaves out duplicates within a part, and paraphrases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mathtune.figures import LeakExample, LeakPair
from mathtune.near import NearIndex
from mathtune.questions import normal_forms, text_keys
from mathtune.tables import count_rows, iterate_batches, take_rows

EXAMPLES = 5  # of each kind
# Every row of the second part whose question is in the first, with its question and the row_ids of both (of the first part
# one: it may hold the question more often).
LEAK_ROWS = pa.schema([("kind", pa.string()), ("first", pa.string()), ("first_row", pa.int64()), ("second", pa.string()),
                       ("second_row", pa.int64()), ("similarity", pa.float64()), ("question", pa.string())])
KINDS = ("exact", "normalised", "near")  # the strongest first


@dataclass(frozen=True)
class Questions:
    """A part of the data: a Parquet file with columns row_id and question, and what people call it."""

    name: str
    path: Path


def find_leaks(first: Questions, others: Sequence[Questions], near: float | None) -> tuple[list[LeakPair], pa.Table]:
    """Looks for the questions of some parts in another, which is read once, batch by batch.

    A row of ``others`` counts once, under its strongest kind: exact (the same text is in ``first``), normalised (the same
    but for case, white space, Unicode form and thousands separators: ``normalise_question``), near (not the same, but a
    text of Jaccard similarity ``near`` or more is there; see ``mathtune.near`` for the few that are missed).

    Args:
        first: the part that is streamed, of any size.
        others: parts that fit in memory (about 2 KiB a question).
        near: similarity from which questions are nearly the same; None: not looked for.

    Returns:
        one pair for each of ``others``, in their order; and all their duplicates, ``LEAK_ROWS``, in the order of those rows.
        Of a row's counterparts in ``first`` the first is named, of near ones the most similar of the first batch that has any.
    """
    sought = [_Sought.read(part) for part in others]
    exact = _First(np.concatenate([part.texts for part in sought]))
    normalised = _First(np.concatenate([part.forms for part in sought]))
    nearly = _Nearly(others, normalised.keys, near) if near is not None else None
    seen: set[int] = set()
    start = 0
    for batch in iterate_batches(first.path, ["question"]):
        questions = batch.column("question").cast(pa.large_string())
        texts = text_keys(questions)
        new = _unseen(texts, seen)
        positions = start + new
        exact.note(texts[new], positions)
        forms = normal_forms(questions.take(pa.array(new)))
        normalised.note(text_keys(forms), positions)
        if nearly:
            nearly.note(forms, positions)
        start += batch.num_rows
    found = [_matched(rows, exact, normalised, nearly) for rows in sought]
    return ([_pair(first, part, one) for part, one in zip(others, found, strict=True)],
            pa.concat_tables([_rows(first, part, one) for part, one in zip(others, found, strict=True)]))


def count_kinds(pairs: Sequence[LeakPair]) -> dict[str, int]:
    """Rows of each kind over all pairs."""
    return {kind: sum(getattr(pair, kind) for pair in pairs) for kind in KINDS}


@dataclass(frozen=True)
class _Sought:
    """Keys of a part's questions, row by row (uint64): as they are written, and of their normal forms."""

    texts: np.ndarray
    forms: np.ndarray

    @classmethod
    def read(cls, part: Questions) -> "_Sought":
        texts, forms = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for batch in iterate_batches(part.path, ["question"]):
            questions = batch.column("question").cast(pa.large_string())
            texts.append(text_keys(questions))
            forms.append(text_keys(normal_forms(questions)))
        return cls(np.concatenate(texts), np.concatenate(forms))


class _First:
    """Where each of some keys was met first.

    Attributes:
        keys: each once, ascending.
        position: int64 row of the streamed part for each of them; -1: not met.
    """

    def __init__(self, keys: np.ndarray):
        self.keys = np.unique(keys)
        self.position = np.full(len(self.keys), -1, np.int64)
        self._index = pd.Index(self.keys)

    def note(self, keys: np.ndarray, positions: np.ndarray) -> None:
        at = self._index.get_indexer(keys)
        fresh = np.flatnonzero(at >= 0)
        fresh = fresh[self.position[at[fresh]] < 0][::-1]  # of equal ones the first is written last
        self.position[at[fresh]] = positions[fresh]

    def of(self, keys: np.ndarray) -> np.ndarray:
        return self.position[self._index.get_indexer(keys)]


class _Nearly:
    """The near duplicate of each of some normal forms that was met first.

    Attributes:
        position: int64 row of the streamed part for each of ``keys``; -1: none was met.
        similarity: float64 of the two.
    """

    def __init__(self, parts: Sequence[Questions], keys: np.ndarray, near: float):
        self.position = np.full(len(keys), -1, np.int64)
        self.similarity = np.ones(len(keys))
        self._keys = pd.Index(keys)
        self._index = NearIndex(_forms_of(parts, self._keys), near)

    def note(self, forms: pa.LargeStringArray, positions: np.ndarray) -> None:
        rows, places, similarity = self._index.search(forms)
        order = np.lexsort((rows, -similarity, places))
        places, best = np.unique(places[order], return_index=True)
        self.position[places] = positions[rows[order][best]]
        self.similarity[places] = similarity[order][best]
        self._index.forget(places)

    def of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = self._keys.get_indexer(keys)
        return self.position[at], self.similarity[at]


def _forms_of(parts: Sequence[Questions], keys: pd.Index) -> pa.LargeStringArray:
    """The normal forms that have the keys, in the keys' order."""
    found, at = [pa.array([], pa.large_string())], [np.empty(0, np.int64)]
    wanted = np.ones(len(keys), bool)
    for part in parts:
        for batch in iterate_batches(part.path, ["question"]):
            forms = normal_forms(batch.column("question").cast(pa.large_string()))
            places, rows = np.unique(keys.get_indexer(text_keys(forms)), return_index=True)
            new = wanted[places]
            wanted[places] = False
            found.append(forms.take(pa.array(rows[new])))
            at.append(places[new])
    return pa.concat_arrays(found).take(pa.array(np.argsort(np.concatenate(at))))


def _unseen(texts: np.ndarray, seen: set[int]) -> np.ndarray:
    """Positions of the keys that come for the first time, ascending; they count as seen from now on."""
    new = []
    for position, key in enumerate(texts.tolist()):
        if key not in seen:
            seen.add(key)
            new.append(position)
    return np.array(new, np.int64)


@dataclass(frozen=True)
class _Matched:
    """What was found of a part's questions, row by row.

    Attributes:
        kind: int64, index of ``KINDS``; -1: nothing was.
        position: int64 row of the streamed part.
        similarity: float64; 1 where the kind is not near.
    """

    kind: np.ndarray
    position: np.ndarray
    similarity: np.ndarray


def _matched(sought: _Sought, exact: _First, normalised: _First, nearly: _Nearly | None) -> _Matched:
    rows = len(sought.texts)
    kind, position, similarity = np.full(rows, -1), np.full(rows, -1, np.int64), np.ones(rows)
    met = [(exact.of(sought.texts), similarity), (normalised.of(sought.forms), similarity)]
    if nearly:
        met.append(nearly.of(sought.forms))
    for number, (places, likeness) in enumerate(met):
        fresh = (kind < 0) & (places >= 0)
        kind[fresh], position[fresh] = number, places[fresh]
        similarity = np.where(fresh, likeness, similarity)
    return _Matched(kind, position, similarity)


def _pair(first: Questions, second: Questions, found: _Matched) -> LeakPair:
    counts = {name: int((found.kind == number).sum()) for number, name in enumerate(KINDS)}
    return LeakPair(first=first.name, second=second.name, first_rows=count_rows(first.path), second_rows=len(found.kind),
                    **counts, examples=_examples(first, second, found))


def _rows(first: Questions, second: Questions, found: _Matched) -> pa.Table:
    rows = np.flatnonzero(found.kind >= 0)
    left = take_rows(first.path, found.position[rows], ["row_id"])["row_id"]
    right = take_rows(second.path, rows, ["row_id", "question"])
    kinds = pa.array([KINDS[kind] for kind in found.kind[rows].tolist()], pa.string())
    names = [pa.array([part.name] * len(rows), pa.string()) for part in (first, second)]
    similarity = pa.array(found.similarity[rows])
    return pa.table([kinds, names[0], left, names[1], right["row_id"], similarity, right["question"]], schema=LEAK_ROWS)


def _examples(first: Questions, second: Questions, found: _Matched) -> list[LeakExample]:
    """The first rows of each kind; of near ones the most similar."""
    chosen = []
    for number in range(len(KINDS)):
        rows = np.flatnonzero(found.kind == number)
        chosen.append(rows[np.argsort(-found.similarity[rows], kind="stable")][:EXAMPLES])
    rows = np.concatenate(chosen)
    left = take_rows(first.path, found.position[rows], ["row_id", "question"]).to_pylist()
    right = take_rows(second.path, rows, ["row_id", "question"]).to_pylist()
    return [LeakExample(kind=KINDS[found.kind[row]], first_row=one["row_id"], second_row=other["row_id"],
                        first=one["question"], second=other["question"], similarity=found.similarity[row])
            for row, one, other in zip(rows.tolist(), left, right, strict=True)]
