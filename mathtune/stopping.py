"""SIGTERM as a request: a training saves at the end of its step and stops; whatever else runs ends at once.

Spot machines and schedulers give notice this way. Nothing depends on it: what was not saved in time is done again.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback

from mathtune.exit_status import GIVEN_UP
from mathtune.ranks import Ranks


class StopRequest:
    """Whether this process was told to stop, and whether it is at something that can save itself."""

    def __init__(self):
        self.asked = False
        self._saves = False

    def listen(self) -> None:
        """Takes SIGTERM from now on. Main thread only."""
        signal.signal(signal.SIGTERM, lambda *_: self._on_signal())

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While this lasts a signal is noted, and it is for the caller to save and stop."""
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    def _on_signal(self) -> None:
        if not self._saves:
            os._exit(GIVEN_UP)
        self.asked = True


STOP = StopRequest()


class StopAtStepEnd(TrainerCallback):
    """Saves and stops after the step during which this process, or another rank's, was told to stop."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def on_step_end(self, args, state, control, **kwargs):
        if self.ranks.any(STOP.asked):
            control.should_save = control.should_training_stop = True
