"""Events: what a job says while it works. One JSON object a line, ``{"event": kind, ...}``, small and self-contained.

Kinds of the engine: ready, phase, step, eval, checkpoint, resumed, progress, result, failed.
Kinds of the control plane, in the same file: begin, stage (started, cached, done, failed), ahead (done, given up), stopped,
end.
Of both: notice, which a person should read.
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Emit = Callable[..., None]  # emit("step", step=3, loss=0.5)
