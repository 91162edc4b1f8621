"""The surest wrong answers as rows of a small table, for whoever shows no HTML (``wrong_answers`` has them for the page)."""

from typing import Any

from mathtune.report.words import UNDEFINED
from mathtune.report.wrong_answers import kind_of

SHOWN = 30
TEXT_CHARACTERS = 60
ANSWER_CHARACTERS = 30


def error_rows(errors: list[dict[str, Any]], count: int = SHOWN) -> list[dict[str, str]]:
    """A verifier's surest mistakes first; a solver's in their order. The slices stand last: a narrow window cuts them first.

    Args:
        errors: as ``build_report`` takes them.
        count: so many at most.
    """
    if errors and "p_true" in errors[0]:
        errors = sorted(errors, key=lambda error: -abs(error["p_true"] - 0.5))
        return [_verifier_row(error) for error in errors[:count]]
    return [_solver_row(error) for error in errors[:count]]


def _verifier_row(error: dict[str, Any]) -> dict[str, str]:
    return {"row": str(error["row_id"]), "P(True)": f"{error['p_true']:.3f}", "it is": "right" if error["label"] else "wrong",
            "answer": _short(error["answer"], ANSWER_CHARACTERS), "question": _short(error["question"], TEXT_CHARACTERS),
            "slices": _slices(error)}


def _solver_row(error: dict[str, Any]) -> dict[str, str]:
    return {"row": str(error["row_id"]), "outcome": kind_of(error), "given": _short(error["given"], ANSWER_CHARACTERS),
            "right answer": _short(error["gold"], ANSWER_CHARACTERS), "question": _short(error["question"], TEXT_CHARACTERS),
            "slices": _slices(error)}


def _slices(error: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in (error.get("slices") or {}).values() if value is not None)


def _short(text: Any, characters: int) -> str:
    """One line of a text."""
    line = UNDEFINED if text is None else " ".join(str(text).split())
    return line if len(line) <= characters else f"{line[:characters - 1].rstrip()}…"
