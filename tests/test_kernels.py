"""The Triton kernels give what the plain functions give: on a GPU, or here by Triton's interpreter in a process of its own.

Triton comes with torch's CUDA build only; beside a CPU build ``.ci/run`` puts it into ``.triton/``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRITON = ROOT / ".triton"

COMPARED = """
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from mathtune.fast import kernels, nf4, pointwise
from mathtune.fast.products import room_for

torch.manual_seed(0)
N, H, I = 5, 96, 1100  # more columns than a tile holds
for dtype, close in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
    def random(*shape): return torch.randn(*shape).to(dtype)
    x, delta, weight, grad, rest = random(N, H), random(N, H), random(H), random(N, H), random(N, H)
    joint, d_hidden, heads, cos, sin = random(N, 2 * I), random(N, I), random(N, 3, 16), torch.randn(N, 8), torch.randn(N, 8)
    found = []
    for module in (pointwise, kernels):
        def room(columns, extra): return room_for(N, columns, extra, x).fill_(7)  # what is not written shows
        total, normed, scale, alone = torch.empty_like(x), room(H, 8), torch.empty(N), room(H, 0)
        module.add_norm(x, delta, weight, 1e-5, total, normed, scale)
        module.add_norm(x, None, weight, 1e-5, None, alone, torch.empty(N))
        again, dx, once_more = room(H, 0), room(H, 16), room(H, 8)
        module.renorm(total, weight, scale, again)
        module.norm_backward(grad, total, weight, scale, rest, dx, once_more)
        hidden, d_joint, hidden_again, rotated = room(I, 8), room(2 * I, 16), room(I, 0), torch.empty_like(heads)
        module.swiglu(joint, hidden)
        module.swiglu_backward(d_hidden, joint, d_joint, hidden_again)
        module.rotate(heads, cos, sin, rotated)
        found.append([total, normed, scale, alone, again, dx, once_more, hidden, d_joint, hidden_again, rotated])
    for number, (plain, kernel) in enumerate(zip(*found, strict=True)):
        error = (plain.float() - kernel.float()).norm() / plain.float().norm()
        assert error < close, (dtype, number, error)
for nested in (True, False):
    packed, state = quantize_4bit(torch.randn(70, 192), quant_type="nf4", compress_statistics=nested)
    room = torch.full((80, 208), 7.0)
    nf4.unpack_nf4(packed, state, room[:70, :192])
    assert torch.equal(room[:70, :192], dequantize_4bit(packed, state))
    assert (room[70:] == 7).all() and (room[:, 192:] == 7).all()
"""


def test_kernels_give_what_the_plain_functions_give():
    path = os.pathsep.join([str(ROOT), str(TRITON)])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if subprocess.run([sys.executable, "-c", "import triton"], env=environment, capture_output=True).returncode:
        pytest.skip("no Triton here: pip install --no-deps --target .triton triton==3.9.0")
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPARED], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
