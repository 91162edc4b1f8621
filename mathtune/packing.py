"""Packs: the examples of a step, one behind the other in one row without padding, within a budget of tokens.

The order fixes a step's examples; only how they are cut into packs depends on the budget, and the loss is normalised over
the step: the machine changes the result by rounding alone (and, with dropout, by what is drawn). Attention keeps the
examples apart (``mathtune.attention``). What every prompt begins with stands once at the front of a pack, and an example's
last token, which predicts nothing, not at all.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from mathtune.tokens import Tokens

FILLER = 256  # tokens of a sequence that only fills a pack


@dataclass(frozen=True)
class Pack:
    """One forward pass. ``N`` tokens: the shared prefix (``prefix``, may be 0), then ``n`` examples without it.

    The sequences of attention are the examples, before them the prefix itself where there is one. Their keys are laid out
    one behind the other, every example's with the prefix's before its own: ``K`` of them.

    Attributes:
        examples: indices of the examples in their table, in the pack's order.
        prefix: tokens of the shared prefix.
        max_query, max_key: the longest sequence, in queries and in keys.
        input_ids, positions: int64 (N,).
        query_ends, key_ends: int32 (sequences + 1,), from 0: where every sequence's queries (in the pack) and keys end.
        key_index: int64 (K,): the token whose key stands at each place.
        own_index: int64 (N - prefix,): where each example token's own key stands.
        label_index: int64 (labels,): tokens that predict a label; the last ones of each example.
        label_ends: int32 (n + 1,), from 0: where every example's labels end.
        labels: int64 (labels,).
    """

    examples: tuple[int, ...]
    prefix: int
    max_query: int
    max_key: int
    input_ids: torch.Tensor
    positions: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    key_index: torch.Tensor
    own_index: torch.Tensor
    label_index: torch.Tensor
    label_ends: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Pack":
        """The pack on a device; from pinned memory without waiting."""
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pin(self) -> "Pack":
        """The pack in pinned memory."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def cut(lengths: np.ndarray, prefix: int, budget: int, ranks: int = 1) -> list[list[int]]:
    """Cuts a step's examples into packs within a budget, evenly, a multiple of ``ranks`` of them.

    The longest example goes to the emptiest pack, again and again (longest processing time first, Graham 1969); where a
    pack would pass the budget there are more packs. Depends on nothing but the arguments.

    Args:
        lengths: int (examples,), tokens of each.
        prefix: tokens that all begin with, once a pack.
        budget: tokens of a pack. An example that is longer is a pack of its own.
        ranks: processes that share the packs.

    Returns:
        Places in ``lengths``, ascending in each pack; pack ``i`` is for rank ``i % ranks``. With fewer examples than
        ranks some packs are empty.
    """
    own = np.asarray(lengths) - prefix - 1  # as they are computed: the last token is not
    room = max(1, budget - prefix)
    order = np.argsort(-own, kind="stable")
    count = _multiple(max(1, min(-(-int(own.sum()) // room), len(own))), ranks)
    while True:
        packs: list[list[int]] = [[] for _ in range(count)]
        sizes = np.zeros(count, dtype=np.int64)
        for place in order:
            emptiest = int(sizes.argmin())
            packs[emptiest].append(int(place))
            sizes[emptiest] += own[place]
        if all(size <= room or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True)):
            return [sorted(pack) for pack in packs]
        count += ranks


def make_pack(tokens: Tokens, examples: list[int], prefix: int) -> Pack:
    """The pack of some examples, on the CPU.

    Args:
        tokens: the table.
        examples: indices in it, at least one.
        prefix: tokens with which all of them begin, or 0 to share none.
    """
    rows = [tokens.of(i)[prefix:-1] for i in examples]  # the last token predicts nothing
    sizes = np.array([len(row) for row in rows])
    targets = [tokens.of(i)[tokens.prompt_lengths[i]:] for i in examples]
    label_counts = np.array([len(target) for target in targets])
    label_places = [np.arange(end - count, end) for end, count in zip(prefix + np.cumsum(sizes), label_counts, strict=True)]
    front = [tokens.of(examples[0])[:prefix]] if prefix else []
    queries = np.concatenate([[prefix], sizes]) if prefix else sizes
    keys = np.concatenate([[prefix], sizes + prefix]) if prefix else sizes
    key_starts = np.cumsum(keys) - keys
    own = np.concatenate([np.arange(size) for size in sizes])
    own_starts = np.repeat((key_starts[1:] if prefix else key_starts) + prefix, sizes)
    return Pack(
        examples=tuple(examples), prefix=prefix, max_query=int(queries.max()), max_key=int(keys.max()),
        input_ids=_int64(np.concatenate([*front, *rows])),
        positions=_int64(np.concatenate([np.arange(prefix), prefix + own])),
        query_ends=_ends(queries), key_ends=_ends(keys),
        key_index=_int64(_key_index(prefix, sizes)), own_index=_int64(own_starts + own),
        label_index=_int64(np.concatenate(label_places)),
        label_ends=_ends(label_counts), labels=_int64(np.concatenate(targets)))


def fill_up(pack: Pack, tokens: int, labels: int) -> Pack:
    """The pack with sequences of no meaning behind its examples, so that it has ``tokens`` tokens and ``labels`` labels.

    Products of the same shape are made by the same kernel, in which a row's sums do not depend on the other rows: what comes
    out for an example is then, byte for byte, the same in every pack. The first labels are those of the examples. For a
    forward pass only.

    Args:
        pack: with at least ``labels`` fewer tokens than ``tokens``.
    """
    there, room = len(pack.input_ids), tokens - len(pack.input_ids)
    runs = np.array([FILLER] * (room // FILLER) + ([room % FILLER] if room % FILLER else []))
    ends, wanted = there + np.cumsum(runs), labels - len(pack.labels)
    counts = np.diff(np.minimum(np.concatenate([[0], np.cumsum(runs)]), wanted))
    places = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    own = pack.key_ends[-1] + torch.arange(room)

    def behind(tensor: torch.Tensor, more: np.ndarray | torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, torch.as_tensor(more).to(tensor.dtype)])

    return replace(
        pack, max_query=max(pack.max_query, int(runs.max())), max_key=max(pack.max_key, int(runs.max())),
        input_ids=behind(pack.input_ids, pack.input_ids[:1].expand(room)),
        positions=behind(pack.positions, np.concatenate([np.arange(run) for run in runs])),
        query_ends=behind(pack.query_ends, ends), key_ends=behind(pack.key_ends, int(pack.key_ends[-1]) + np.cumsum(runs)),
        key_index=behind(pack.key_index, there + np.arange(room)), own_index=behind(pack.own_index, own),
        label_index=behind(pack.label_index, places), label_ends=behind(pack.label_ends, len(pack.labels) + np.cumsum(counts)),
        labels=behind(pack.labels, np.zeros(wanted, np.int64)))


def _key_index(prefix: int, sizes: np.ndarray) -> np.ndarray:
    """The token whose key stands at each place: the prefix's, then for every example the prefix's and its own."""
    parts, begin = ([np.arange(prefix)] if prefix else []), prefix
    for size in sizes:
        parts += [np.arange(prefix), np.arange(begin, begin + size)]
        begin += size
    return np.concatenate(parts)


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _ends(sizes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))


def _int64(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
