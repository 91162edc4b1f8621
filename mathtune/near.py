"""Which texts are nearly the same? MinHash finds candidates, the Jaccard similarity of their shingles decides.

A shingle is two neighbouring words; a word is what stands between spaces, with its punctuation. With a limit of 0.8 one
or two changed words in a question of 45 words are nearly the same, three scattered ones are not. MinHash and its bands
(Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) come from rensa, which is imported when
an index is made. Leaves out paraphrases, and text that is written without spaces: it is one word.
"""

from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from mathtune.questions import scramble, text_keys

PERMUTATIONS = 120  # of a signature; many divisors, so that there are bands for every limit
SEED = 1
FOUND = 0.99  # of the pairs that are just at the limit, the share that must become candidates
QUERY_ROWS = 512  # texts looked up at a time: those of one template can have thousands of candidates each
PAIRS = 200_000  # whose similarity is computed at a time


class NearIndex:
    """Texts in which near duplicates of other texts are looked for.

    Args:
        texts: n texts in their normal form, each once.
        near: Jaccard similarity from which two texts are nearly the same.
    """

    def __init__(self, texts: pa.LargeStringArray, near: float):
        from rensa import RMinHashLSH

        self.near = near
        self._lsh = RMinHashLSH(near, PERMUTATIONS, bands(near))
        shingles, edges = shingle(texts)
        self._lsh.insert_many(_signatures(shingles, edges), 0)
        self._vocabulary = pd.Index(np.unique(shingles))
        self._sets = self._as_sets(shingles, edges)
        self._sizes = self._sets.sum(axis=1)

    def search(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The near duplicates of m texts in their normal form.

        Returns:
            for every pair of near duplicates: places (int64) in ``texts`` and in the index, ascending by the first, and
            their similarity (float64).
        """
        shingles, edges = shingle(texts)
        found = [np.empty((3, 0))]
        for start in range(0, len(texts), QUERY_ROWS):
            candidates = self._lsh.query_all(_signatures(shingles, edges[start:start + QUERY_ROWS + 1]))
            counts = np.array([len(one) for one in candidates])
            asked = np.flatnonzero(counts)
            if len(asked):
                rows = np.repeat(np.arange(len(asked)), counts[asked])
                places = np.fromiter(chain.from_iterable(candidates), np.int64, len(rows))
                similarity = self._similarity(*_chosen(shingles, edges, start + asked), rows, places)
                near = similarity >= self.near
                found.append(np.stack([start + asked[rows[near]], places[near], similarity[near]]))
        rows, places, similarity = np.concatenate(found, axis=1)
        return rows.astype(np.int64), places.astype(np.int64), similarity

    def forget(self, places: np.ndarray) -> None:
        """Stops looking for near duplicates of some of the index's texts."""
        for place in places.tolist():
            self._lsh.remove(place)

    def _as_sets(self, shingles: np.ndarray, edges: np.ndarray) -> sparse.csr_array:
        """Ones where a text (row) has a shingle of the index's (column)."""
        columns = self._vocabulary.get_indexer(shingles)
        known = columns >= 0
        indptr = np.concatenate([[0], np.cumsum(known)])[edges]
        sets = sparse.csr_array((np.ones(indptr[-1], np.int32), columns[known], indptr),
                                shape=(len(edges) - 1, len(self._vocabulary)))
        sets.sum_duplicates()
        sets.data[:] = 1
        return sets

    def _similarity(self, shingles: np.ndarray, edges: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Jaccard similarity of the texts ``rows`` and the index's ``places``, pair by pair."""
        sets, sizes = self._as_sets(shingles, edges), _distinct(shingles, edges)
        both = [sets[rows[start:start + PAIRS]].multiply(self._sets[places[start:start + PAIRS]]).sum(axis=1)
                for start in range(0, len(rows), PAIRS)]
        both = np.concatenate(both)
        return both / (sizes[rows] + self._sizes[places] - both)


def bands(near: float) -> int:
    """How many bands make ``FOUND`` of the pairs of similarity ``near`` candidates: as few as do.

    Signatures of similarity s agree in all r rows of one of b bands with probability 1 - (1 - s^r)^b.
    """
    counts = [count for count in range(1, PERMUTATIONS + 1) if PERMUTATIONS % count == 0]
    return next((count for count in counts if 1 - (1 - near ** (PERMUTATIONS // count)) ** count >= FOUND), PERMUTATIONS)


def shingle(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of every two neighbouring words; a text of one word has that word.

    Args:
        texts: n texts in their normal form.

    Returns:
        uint64 keys, text after text and with repeats, and the n + 1 edges (int64) of each text's among them.
    """
    words = pc.split_pattern(texts, " ")
    ends = words.offsets.to_numpy().astype(np.int64)
    coded = words.values.dictionary_encode()
    keys = text_keys(coded.dictionary)[coded.indices.to_numpy()]
    following = np.append(keys[1:], np.uint64(0))
    last = ends[1:] - 1
    following[last] = 0
    counts = np.diff(ends)
    kept = np.ones(len(keys), bool)
    kept[last[counts > 1]] = False
    pairs = scramble(scramble(keys, 1) + following, 2)
    return pairs[kept], np.concatenate([[0], np.cumsum(np.maximum(counts - 1, 1))])


def _signatures(shingles: np.ndarray, edges: np.ndarray) -> list:
    from rensa import RMinHash

    tokens = shingles[edges[0]:edges[-1]].view("S8").tolist()  # as bytes objects, which rensa reads fastest
    bounds = (edges - edges[0]).tolist()
    return RMinHash.from_token_sets([tokens[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)],
                                    PERMUTATIONS, SEED)


def _distinct(shingles: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many different shingles each text has (int64)."""
    return np.array([len(np.unique(shingles[low:high])) for low, high in zip(edges[:-1], edges[1:], strict=True)])


def _chosen(shingles: np.ndarray, edges: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of some of the texts, and their edges."""
    parts = [shingles[edges[row]:edges[row + 1]] for row in rows]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])])
