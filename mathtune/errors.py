"""One tree of errors. Each says what happened, where (file, row or key), and what to do about it.

``UserError`` and below: the recipe, the data or the range is at fault; exit status 2.
``MachineError`` and below: this program or the machine is at fault; exit status 1 (3: a person has to decide).
"""


class MathtuneError(Exception):
    """Base of every error that mathtune raises on purpose.

    Args:
        what: what happened, one sentence without a full stop at the end.
        where: the file, row or recipe key it happened at.
        remedy: what the reader can do about it.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = ""):
        super().__init__(what)
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.remedy:
            lines.append(f"→ {self.remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """The error as JSON, so that the engine can send it over the border."""
        return {"type": type(self).__name__, "what": self.what, "where": self.where, "remedy": self.remedy}

    def __reduce__(self):  # keyword-only arguments need help to survive pickling
        return (_rebuild, (type(self).__name__, self.what, self.where, self.remedy))


class UserError(MathtuneError):
    """The recipe, the data or the range asked for is wrong."""

    exit_status = 2


class RecipeError(UserError):
    """A recipe does not parse or contradicts itself."""


class DataError(UserError):
    """The source data is damaged, of the wrong shape, or too small."""


class RangeError(UserError):
    """A range of rows overlaps, skips, repeats or exceeds what is there."""


class ChainError(UserError):
    """The recipe disagrees with what a chain pins or has already trained."""


class ModelError(UserError):
    """The base model, its tokenizer or an adapter cannot be used."""


class MachineError(MathtuneError):
    """This program or this machine failed."""


class StoreError(MachineError):
    """An artifact or checkpoint on disk is damaged or cannot be written."""


class Damaged(StoreError):
    """Bytes that are there are not those that were published: the only reason for which anything is set aside."""


class TakenOver(MachineError):
    """Another worker went on with this chain while this one was asleep or slower; what that one did stays."""


class EngineError(MachineError):
    """The engine process died, hung, or reported a failure of its own."""


class OutOfMemory(EngineError):
    """The accelerator's memory was exhausted."""


class Interrupted(MachineError):
    """A signal asked the work to stop; what was done is kept, and the same command goes on."""


class TrainingError(MachineError):
    """Training produced numbers that must not be kept (NaN loss, a reward that never moves)."""


class BadNumbers(TrainingError):
    """A loss or gradient is not finite; worth one attempt from the last checkpoint, in a fresh engine."""


class TrialFailed(MachineError):
    """A trial of a sweep did not end well; the others go on."""


class PoolUsedUp(RangeError):
    """The next rows are asked for, and every row of the training pool is in the chain."""


class RejectedLink(TrainingError):
    """A link's validation accuracy fell significantly below its parent's: a person decides. Trying again changes nothing."""

    exit_status = 3


def _tree(root: type[MathtuneError]) -> dict[str, type[MathtuneError]]:
    return {root.__name__: root} | {name: cls for sub in root.__subclasses__() for name, cls in _tree(sub).items()}


def _rebuild(name: str, what: str, where: str, remedy: str) -> MathtuneError:
    return _tree(MathtuneError).get(name, EngineError)(what, where=where, remedy=remedy)


def from_dict(error: dict[str, str]) -> MathtuneError:
    """The error that ``to_dict`` described, as an instance of its own class."""
    return _rebuild(error["type"], error["what"], error["where"], error["remedy"])
