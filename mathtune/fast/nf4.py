"""NF4 weights with double quantisation to a matrix whose rows may have room behind them, in one pass over memory.

bitsandbytes' own kernel writes rows without room only, which a second pass would have to copy.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # packed bytes a program


@triton.jit
def _unpack(packed, absmax, code, outer_absmax, outer_code, offset, room, count, columns, row_stride,
            NESTED: tl.constexpr, GROUP: tl.constexpr, OUTER: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    byte = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    group = (2 * place) // GROUP
    if NESTED:
        stored = tl.load(absmax + group, mask=inside, other=0).to(tl.int32)
        scale = tl.load(outer_code + stored) * tl.load(outer_absmax + group // OUTER, mask=inside, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + group, mask=inside, other=0.0)
    first = tl.load(code + (byte >> 4)) * scale
    second = tl.load(code + (byte & 15)) * scale
    both = tl.interleave(first, second).to(room.dtype.element_ty)
    element = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    target = room + (element // columns) * row_stride + element % columns
    tl.store(target, both, mask=element < 2 * count)


def unpack_nf4(packed: Tensor, state, room: Tensor) -> None:
    """Writes a bitsandbytes NF4 weight into ``room``.

    Args:
        packed: uint8, two weights a byte, the first in the upper half.
        state: its ``QuantState``; with double quantisation the groups' scales are 8-bit codes of a second level.
        room: [out, in], float32, bfloat16 or float16.
    """
    nested = state.nested
    outer = state.state2 if nested else state
    count = packed.numel()
    _unpack[(triton.cdiv(count, BLOCK),)](
        packed, state.absmax, state.code, outer.absmax, outer.code, state.offset if nested else state.absmax, room, count,
        room.shape[1], room.stride(0), NESTED=nested, GROUP=state.blocksize, OUTER=outer.blocksize, BLOCK=BLOCK)
