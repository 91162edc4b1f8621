"""Plans how prompts are laid on a card for a forward pass without a backward one: tokens of a pack, and whether weights stay
dequantised. As ``mathtune.planner``, with whose shapes it counts, it needs neither torch nor a GPU."""

from dataclasses import dataclass

from mathtune.errors import MachineError
from mathtune.planner import GIB, PLAIN, ROUNDED, USABLE, Shape

SATURATED = 8_192  # tokens; packs four times as large are 1.5% faster on an H200


@dataclass(frozen=True)
class Prefill:
    """How prompts are laid on the card.

    Attributes:
        pack_tokens: the most tokens of a pack.
        resident: whether dequantised weights are kept.
        bytes: expected peak beyond the base's own weights.
        available: bytes that were free for it.
        fast: whether ``mathtune.fast`` computes it.
    """

    pack_tokens: int
    resident: bool
    bytes: int
    available: int
    fast: bool

    def __str__(self) -> str:
        weights = "weights kept dequantised" if self.resident else "weights made from NF4 in every pass"
        weights = weights if self.fast else "transformers' own layers"
        return (f"scoring packs of up to {self.pack_tokens:,} tokens, {weights}; "
                f"about {self.bytes / GIB:.2g} of the {self.available / GIB:.1f} GiB free for it")


def plan_prefill(shape: Shape, rank: int, width: int, available: int, longest: int, spread: float,
                 pack_tokens: int | None = None, resident: bool | None = None) -> Prefill:
    """The largest packs that fit, up to what saturates a GPU; weights dequantised for good where there is room.

    Args:
        shape: of the model.
        rank: of its adapter; 0: none.
        width: bytes of an element of the compute dtype.
        available: bytes free for all but the base's weights.
        longest: tokens of the longest prompt: a pack holds at least that.
        spread: keys that stand for each token, since the shared prefix's are repeated for every prompt.
        pack_tokens, resident: fixed by the recipe; None: to be planned.

    Raises:
        MachineError: not even the longest prompt fits.
    """
    usable, per_token = int(available * USABLE), prefill_token_bytes(shape, rank, width, spread)
    most = max(longest, pack_tokens or SATURATED)
    ways = [False] if not shape.fast else [True, False] if resident is None else [resident]
    for keeps in ways:
        fixed = prefill_fixed_bytes(shape, rank, width, keeps)
        room = (usable - fixed) // per_token
        enough = longest if keeps is ways[-1] else max(longest, most // 4)  # smaller packs cost more than weights made anew
        if room >= enough:
            tokens = max(longest, min(most, room // ROUNDED * ROUNDED))
            return Prefill(tokens, keeps, fixed + per_token * tokens, available, shape.fast)
    needed = (fixed + per_token * longest) / USABLE
    raise MachineError(f"scoring a prompt of {longest:,} tokens needs {needed / GIB:.2g} GiB beside the base, "
                       f"{max(0, available) / GIB:.2g} are free for it", where="memory",
                       remedy="a shorter model.max_length, a smaller base, or more memory")


def prefill_fixed_bytes(shape: Shape, rank: int, width: int, resident: bool) -> int:
    """Dequantised weights, or the room to make a layer's, and the adapter's factors."""
    if not shape.fast:
        return 0
    weights = shape.linear_parameters if resident else shape.layer_parameters
    return (weights + shape.layers * rank * shape.factors) * width


def prefill_token_bytes(shape: Shape, rank: int, width: int, spread: float) -> int:
    """Bytes of a token at the peak, inside one layer: in its MLP, or in its attention."""
    stream = 5 * shape.hidden + 4 * rank
    keys = shape.keys if shape.varlen else 2 * shape.attention  # in padded buckets every head of a query has keys of its own
    attention = stream + 4 * shape.attention + shape.keys + 2 * spread * keys
    inner = stream + 3 * shape.inner
    return int(max(attention, inner) * width * (1 if shape.fast else PLAIN))
