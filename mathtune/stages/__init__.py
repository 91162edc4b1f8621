"""The stages of a run as plain functions: a workspace and the results before in, a result out. No Prefect here.

Each says through ``Outcome`` whether it computed or found its result, so that whoever calls it can say so.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A stage's result.

    Attributes:
        value: what the next stage needs: a reference, never a table.
        cached: it was there already.
        summary: one line for people.
    """

    value: Any
    cached: bool
    summary: str
