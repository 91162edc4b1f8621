"""What tests of training share: a log of events, a cold base, and settings of two epochs."""

from pathlib import Path

from mathtune.models import load_base
from mathtune.recipe import Sft


class Events(list):
    def __call__(self, event, **fields):
        self.append({"event": event, **fields})

    def of(self, kind):
        return [event for event in self if event["event"] == kind]


def fresh(job):
    return load_base(job.model, job.hardware, Path(job.cache))


def two_epochs(**changes):
    return Sft(**{"learning_rate": 5e-3, "examples_per_step": 16, "save_every": 2, "epochs": 2, **changes})
