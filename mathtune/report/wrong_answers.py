"""The wrong answers as the page holds them: a list that needs no script, and JSON for the browser that filters.

The JSON is ``{"slices": [by ...], "fields": {name: title}, "rows": [...]}``; a row is an object of
``id``, ``kind``, ``p`` (P(True), verifier only), ``sure`` (how sure the model was, from 0 to 1, verifier only), ``told`` (one
line), ``slices`` (a value for each of ``slices``, or null) and ``texts`` (one for each of ``fields``).
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mathtune.figures import Slice
from mathtune.report.words import cut

PAGE_BYTES = 2_000_000  # of JSON: the page opens from a mail
LISTED = 50  # wrong answers that are there without a script
_VERIFIER = {"question": "Question", "answer": "Proposed answer", "solution": "Solution"}
_SOLVER = {"question": "Question", "gold": "Right answer", "completion": "Completion"}


@dataclass(frozen=True)
class WrongAnswers:
    """Wrong answers, prepared for the page.

    Attributes:
        count: how many there are in all.
        held: how many the page holds.
        kinds: how many of each kind, of those that the page holds.
        divisions: the same of each slice's values, by what divides them.
        listed: the first ``LISTED``, each as a row of the module's JSON with ``fields`` for its texts.
        data: the JSON, safe inside a ``<script>`` element.
    """

    count: int
    held: int
    kinds: dict[str, int]
    divisions: dict[str, dict[str, int]]
    listed: list[dict[str, Any]]
    data: str


def prepare(errors: list[dict[str, Any]], slices: list[Slice]) -> WrongAnswers:
    """Wrong answers of a verifier or a solver (see ``build_report``), as many of every kind as the page has room for.

    Args:
        errors: all; those of a kind worst first.
        slices: of the metrics: their order is that of the filters.
    """
    titles = _VERIFIER if errors and "p_true" in errors[0] else _SOLVER
    order = {(one.by, one.value): place for place, one in enumerate(slices)}
    divisions = list(dict.fromkeys([*(one.by for one in slices), *(by for one in errors for by in one.get("slices") or {})]))
    rows, room = [], PAGE_BYTES
    for error in _alternated(errors):
        row = _row(error, titles, divisions)
        room -= len(_json(row).encode("utf-8", "replace")) + 1
        if room < 0:
            break
        rows.append(row)
    data = _json({"slices": divisions, "fields": titles, "rows": rows})
    counts = {by: _counts([row["slices"][i] for row in rows], lambda value, by=by: order.get((by, value), len(order)))
              for i, by in enumerate(divisions)}
    listed = [row | {"fields": dict(zip(titles.values(), row["texts"], strict=True))} for row in rows[:LISTED]]
    return WrongAnswers(count=len(errors), held=len(rows), kinds=_counts([row["kind"] for row in rows]),
                        divisions={by: values for by, values in counts.items() if values}, listed=listed, data=data)


def _alternated(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each kind after the other, so that a kind with many does not take the room of the others."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for error in errors:
        kinds.setdefault(kind_of(error), []).append(error)
    return [error for turn in zip_longest(*kinds.values()) for error in turn if error is not None]


def _counts(values: list[str | None], order: Callable[[str], Any] = str) -> dict[str, int]:
    counts = Counter(value for value in values if value is not None)
    return {value: counts[value] for value in sorted(counts, key=order)}


def kind_of(error: dict[str, Any]) -> str:
    """How a row is wrong: a verifier's false positive or false negative, a solver's outcome."""
    if kind := error.get("kind") or error.get("outcome"):
        return kind
    if "p_true" in error:
        return "false negative" if error["label"] else "false positive"
    return "cut off" if not error["finished"] else "unparsed" if error["given"] is None else "wrong"


def _row(error: dict[str, Any], titles: dict[str, str], divisions: list[str]) -> dict[str, Any]:
    slices = error.get("slices") or {}
    row = {"id": error["row_id"], "kind": kind_of(error), "told": _told(error),
           "slices": [None if slices.get(by) is None else str(slices[by]) for by in divisions],
           "texts": [cut(error[name]) for name in titles]}
    if "p_true" in error:
        row |= {"p": round(error["p_true"], 4), "sure": round(abs(2 * error["p_true"] - 1), 4)}
    return row


def _told(error: dict[str, Any]) -> str:
    if "p_true" in error:
        return "right answer, judged wrong" if error["label"] else "wrong answer, judged right"
    gave = "gave no answer" if error["given"] is None else f"gave {_short(error['given'])}"
    return f"{gave}, right is {_short(error['gold'])}{'' if error['finished'] else '; cut off'}"


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= 20 else f"{text[:19]}…"


def _json(value: Any) -> str:
    """Compact JSON in which nothing can end or open an element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
