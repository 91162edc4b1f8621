"""Plans how a step is laid on a card: tokens of a pack, what is computed again, and whether weights stay dequantised.

The bytes of a pack are counted from the model's shapes, tensor by tensor as ``mathtune.fast.blocks`` keeps them, the time
in tokens: what a pass costs beyond its tokens is given as so many tokens more. Nothing here needs torch or a GPU, so that
a plan for another card is one call away. Of all ways that fit the one that costs least is taken.
"""

from dataclasses import dataclass
from itertools import product

from mathtune.errors import MachineError
from mathtune.recipe import Recompute

GIB = 2**30
CONTEXT = int(0.75 * GIB)  # CUDA's context and the libraries' workspaces, outside torch's allocator
ROUNDED = 256  # tokens: what little else happens to be on the card does not change the packs
USABLE = 0.94  # of what is free: the rest is what the allocator cannot give out again
LOGITS = 2**27 * 7  # bytes at the head: half-precision and float32 logits of mathtune.fast.loss
# Relative costs, measured on an H100 at the shapes of Llama-3.1-8B
FACTOR = {"none": 1.0, "selective": 1.22, "full": 1.42}
PASS_TOKENS = 400  # what starting a pack costs
UNPACK_TOKENS = 130  # what making all weights from NF4 costs, each time
UNPACKS = {"none": 2, "selective": 2, "full": 3}
PLAIN = 2.2  # what transformers' own layers keep, as a multiple of ours
MASTER_BYTES = 16  # a trained parameter: float32 value, gradient, and Adam's two moments
NF4_BYTES = 0.516  # a weight: 4 bits, and for 64 of them 8 bits and a share of a float32 (arXiv:2305.14314, section 3)


@dataclass(frozen=True)
class Shape:
    """What decides a model's memory.

    Attributes:
        layers, hidden, inner: decoder layers, their width, and the width inside the MLP.
        query_heads, key_heads, head_size: of the attention.
        vocabulary: rows of the head.
        fast: whether the fast step knows its layers.
        varlen: whether the flash kernel for packs runs (``mathtune.attention``).
        tied: whether head and embeddings are one.
    """

    layers: int
    hidden: int
    inner: int
    query_heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    fast: bool
    varlen: bool
    tied: bool

    @property
    def factors(self) -> int:
        """Elements of a layer's LoRA factors, a rank of each projection: of queries, keys and values in one block each."""
        return 3 * (self.hidden + self.attention + self.keys) + self.attention + 2 * self.hidden + 2 * (
            self.hidden + 2 * self.inner) + self.inner

    @property
    def attention(self) -> int:
        """Columns of the queries."""
        return self.query_heads * self.head_size

    @property
    def keys(self) -> int:
        """Columns of keys and values together."""
        return 2 * self.key_heads * self.head_size

    @property
    def layer_parameters(self) -> int:
        """In the projections of one layer."""
        return self.hidden * (2 * self.attention + self.keys) + 3 * self.hidden * self.inner

    @property
    def linear_parameters(self) -> int:
        """In the projections of all layers."""
        return self.layers * self.layer_parameters

    @property
    def other_parameters(self) -> int:
        """In embeddings and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class Training:
    """What decides a training's memory besides the model.

    Attributes:
        rank: of the adapters.
        parameters: of the adapters.
        width: bytes of an element of the compute dtype.
        dropout: whether masks are kept.
        spread: keys that stand for each token: more than 1 where the shared prefix's are repeated for every example.
    """

    rank: int
    parameters: int
    width: int
    dropout: bool = False
    spread: float = 1.0


@dataclass(frozen=True)
class Wishes:
    """What the recipe fixes; None: to be planned."""

    pack_tokens: int | None = None
    recompute: Recompute | None = None
    resident: bool | None = None


@dataclass(frozen=True)
class Plan:
    """How a step is laid on the card.

    Attributes:
        pack_tokens: the most tokens of a pack.
        recompute: what the backward pass computes again.
        resident: whether dequantised weights are kept.
        packs: of a step of ordinary size.
        bytes: expected peak beyond the base's own weights.
        available: bytes that were free for it.
        fast: whether the fast step computes it.
    """

    pack_tokens: int
    recompute: Recompute
    resident: bool
    packs: int
    bytes: int
    available: int
    fast: bool

    def __str__(self) -> str:
        weights = "weights kept dequantised" if self.resident else "weights made from NF4 in every pass"
        again = {"none": "nothing computed twice", "selective": "MLP's inner products computed twice",
                 "full": "layers computed twice"}[self.recompute]
        weights = weights if self.fast else "transformers' own layers"
        return (f"packs of up to {self.pack_tokens:,} tokens ({self.packs} a step), {again}, {weights}; "
                f"about {self.bytes / GIB:.2g} of the {self.available / GIB:.1f} GiB free for it")


def plan_step(shape: Shape, training: Training, available: int, step_tokens: int, largest_step: int, longest: int,
              wishes: Wishes | None = None) -> Plan:
    """The cheapest way that fits.

    Args:
        shape: of the model.
        training: what else decides.
        available: bytes free for all but the base's weights.
        step_tokens: tokens of an ordinary step.
        largest_step: tokens of the largest: no pack needs more.
        longest: tokens of the longest example: a pack holds at least that.
        wishes: what is fixed already.

    Raises:
        MachineError: not even the longest example fits.
    """
    wishes = wishes or Wishes()
    usable, found, needed = int(available * USABLE), [], []
    for recompute, resident in product(_levels(shape, wishes), _residencies(shape, wishes)):
        fixed, per_token = fixed_bytes(shape, training, resident), token_bytes(shape, training, recompute)
        room, most = (usable - fixed) // per_token, max(largest_step, longest)
        least = max(wishes.pack_tokens or 0, longest)  # an example that is longer than a pack is one by itself
        needed.append(int((fixed + per_token * min(least, most)) / USABLE))
        if room >= min(least, most):
            tokens = wishes.pack_tokens or min(max(room // ROUNDED * ROUNDED, longest), most)
            packs = -(-step_tokens // tokens)
            size = fixed + per_token * max(longest, -(-step_tokens // packs))
            found.append((_cost(step_tokens, packs, recompute, resident),
                          Plan(tokens, recompute, resident, packs, size, available, shape.fast)))
    if found:
        return min(found, key=lambda pair: pair[0])[1]
    fixed = ", ".join(f"hardware.{name}" for name, value in vars(wishes).items() if value is not None)
    raise MachineError(
        f"training {max(wishes.pack_tokens or 0, longest)} tokens at a time needs {min(needed) / GIB:.2g} GiB beside the base, "
        f"{max(0, available) / GIB:.2g} are free for it", where="memory",
        remedy=f"leave {fixed} to the planner" if fixed else "a shorter model.max_length, a smaller base, or more memory")


def _cost(step_tokens: int, packs: int, recompute: Recompute, resident: bool) -> float:
    """Time of a step, in tokens."""
    unpacks = 0 if resident else UNPACKS[recompute]
    return step_tokens * FACTOR[recompute] + packs * (PASS_TOKENS + unpacks * UNPACK_TOKENS)


def _levels(shape: Shape, wishes: Wishes) -> list[Recompute]:
    if wishes.recompute:
        return [wishes.recompute if shape.fast or wishes.recompute == "none" else "full"]  # plain layers know no other
    return ["none", "selective", "full"] if shape.fast else ["none", "full"]


def _residencies(shape: Shape, wishes: Wishes) -> list[bool]:
    if not shape.fast:
        return [False]
    return [True, False] if wishes.resident is None else [wishes.resident]


def fixed_bytes(shape: Shape, training: Training, resident: bool) -> int:
    """What does not depend on the pack: adapter and optimizer, dequantised weights or the room to make them, logits."""
    weights = shape.linear_parameters if resident else shape.layer_parameters
    factors = shape.layers * training.rank * shape.factors if shape.fast else 0
    logits = min(LOGITS, 512 * shape.vocabulary * (training.width + 4))
    return training.parameters * MASTER_BYTES + (weights + factors) * training.width + logits


def token_bytes(shape: Shape, training: Training, recompute: Recompute) -> int:
    """Bytes that a token of a pack takes at the peak: what layers keep, and what the backward pass of one needs beside it."""
    # in padded buckets every head of a query has keys of its own, and queries are repeated with the prefix, too
    attention = (2 * shape.attention + training.spread * shape.keys if shape.varlen
                 else (1 + 4.4 * training.spread) * shape.attention)
    masks = (2 * shape.hidden + shape.attention + shape.inner) / training.width if training.dropout else 0
    kept = 2 * shape.hidden + attention + masks + 7 * training.rank + 4 * shape.query_heads / training.width
    inner = 2 * shape.inner
    passing = 4 * shape.inner + 4 * shape.hidden
    of_layer = {"none": kept + inner, "selective": kept, "full": shape.hidden}[recompute]
    beside = passing + {"none": 0, "selective": inner, "full": kept + inner}[recompute]
    factor = 1 if shape.fast else PLAIN
    of_layer = of_layer if recompute == "full" else of_layer * factor
    return int((shape.layers * of_layer + beside * factor) * training.width)


def base_bytes(shape: Shape, width: int, nf4: bool) -> int:
    """Bytes of the base's weights."""
    return int(shape.linear_parameters * (NF4_BYTES if nf4 else width) + shape.other_parameters * width)


def lora_parameters(shape: Shape, rank: int, targets: tuple[str, ...]) -> int:
    """Parameters of adapters of a rank on these projections."""
    sides = {"q_proj": (shape.hidden, shape.attention), "k_proj": (shape.hidden, shape.keys // 2),
             "v_proj": (shape.hidden, shape.keys // 2), "o_proj": (shape.attention, shape.hidden),
             "gate_proj": (shape.hidden, shape.inner), "up_proj": (shape.hidden, shape.inner),
             "down_proj": (shape.inner, shape.hidden)}
    return shape.layers * rank * sum(sum(sides[target]) for target in targets if target in sides)

