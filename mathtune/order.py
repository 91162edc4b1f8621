"""The order in which a run meets its examples, laid out beforehand: a step's examples are known before any is trained.

What is laid out once needs no sampler state: a checkpoint names the examples of the step after it, and going on means
reading the same list from there. trl's and Trainer's samplers are left out of it (they count and skip).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mathtune.digests import digest_value


@dataclass(frozen=True)
class Order:
    """Which example stands at which place of a run.

    Attributes:
        positions: int64 (places,): index of the example at each place.
        per_step: examples of one optimizer step; the last step may have fewer.
        ids: name of each example (the pool's ``row_id``), by its index.
    """

    positions: np.ndarray
    per_step: int
    ids: list[int]

    @property
    def steps(self) -> int:
        return -(-len(self.positions) // self.per_step)

    def after(self, step: int) -> np.ndarray:
        """Indices (int64) of the examples that follow the optimizer step with this number (0: all)."""
        return self.positions[step * self.per_step:]

    def examples_of(self, step: int) -> np.ndarray:
        """Indices (int64) of the examples of one optimizer step, from 1."""
        return self.positions[(step - 1) * self.per_step:step * self.per_step]

    def ids_of(self, step: int) -> list[int]:
        """Names of the examples of one optimizer step, from 1."""
        return [self.ids[i] for i in self.examples_of(step)]

    def place(self, step: int) -> dict[str, Any]:
        """Where a checkpoint after this step stands: the examples that come next, and a digest of the whole order."""
        return {"step": step, "next": self.ids_of(step + 1), "order": self.digest()}

    def digest(self) -> str:
        return digest_value({"per_step": self.per_step, "ids": [self.ids[i] for i in self.positions]})


def lay_out(ids: list[int], places: int, per_step: int, seed: int) -> Order:
    """Passes over all examples, each pass in a new seeded order, until there are ``places``."""
    passes = [np.random.Generator(np.random.Philox(key=[seed, number])).permutation(len(ids))
              for number in range(-(-places // len(ids)))]
    return Order(np.concatenate(passes)[:places], per_step, ids)
