"""What a run says of its submission and of the shares of True in its data. Leaves out how it was made (``stages.submit``)."""

from typing import Any

from mathtune.figures import Interval, VerifierMetrics
from mathtune.report import words
from mathtune.run_record import RunRecord

_FIGURES = {"rows": "rows", "true_share": "share_judged_True", "validation_true_share": "validation_share_judged_True",
            "accuracy": "accuracy", "threshold": "threshold", "threshold_from": "threshold_from", "temperature": "temperature"}
_ELSEWHERE = ("notices", "refused")


def known_accuracy(record: RunRecord) -> Interval | None:
    """Accuracy on the test rows; None where their truth is not known."""
    known = (record.submission or {}).get("accuracy")
    return Interval.model_validate(known) if known else None


def known_note(record: RunRecord) -> str:
    """What belongs beside the accuracy on the test rows: how it was judged, and what the more frequent verdict would reach."""
    facts, accuracy = record.submission or {}, known_accuracy(record)
    told = [f"95% interval {words.bounds(accuracy)}, n\u00a0=\u00a0{accuracy.n:,}"]
    if "threshold" in facts:
        told.append(f"judged by the submission’s threshold, {words.score(facts['threshold'])}")
    if (other := other_link(record)) is not None:
        told.append(other)
    if (true := true_share(record.data.get("download", {}).get("test_classes"))) is not None:
        told.append(f"always the more frequent verdict: {words.percent(max(true, 1 - true))}")
    return "; ".join(told)


def other_link(record: RunRecord) -> str | None:
    """Which link the submission is from, where it is not the last one of the chain."""
    number = (record.submission or {}).get("link")
    if number is None or not record.links or number == record.links[-1].number:
        return None
    return f"from link {number}, not the last"


def refusal(record: RunRecord) -> str | None:
    """Why no submission was written; None where one was, or none was asked for."""
    return (record.submission or {}).get("refused")


def true_share(classes: dict[str, int] | None) -> float | None:
    """Share of True among rows whose label is known, of their counts by label; None without such rows."""
    known = (classes or {}).get("true", 0) + (classes or {}).get("false", 0)
    return classes["true"] / known if known else None


def mixtures(record: RunRecord) -> str | None:
    """That the validation rows are another mixture of labels than the source, where they are."""
    validation = true_share(record.data.get("split", {}).get("classes", {}).get("validation"))
    source = true_share(record.data.get("download", {}).get("classes"))
    if validation is None or source is None or abs(validation - source) < 0.01:
        return None
    even = abs(validation - 0.5) < 0.005
    start = "The validation rows are balanced" if even else f"Of the validation rows {validation:.0%} are True"
    return f"{start}; of the source’s rows {source:.0%} are True."


def judged(record: RunRecord) -> str | None:
    """The submission's share of True beside the validation's; None without a submission."""
    facts = record.submission or {}
    if "true_share" not in facts:
        return None
    link = words.last_evaluated(record)
    known = facts.get("validation_true_share")
    if known is None and link and isinstance(link.metrics, VerifierMetrics):
        known = link.metrics.true_share.model_dump(mode="json")
    beside = f", of the validation rows {_with_bounds(known)}" if known else ""
    return f"Of the test rows {_with_bounds(facts['true_share'])} are judged True{beside}."


def figures(record: RunRecord) -> dict[str, Any]:
    """The facts of the submission that a person looks for, by their title."""
    facts = record.submission or {}
    return {title: facts[name] for name, title in _FIGURES.items() if name in facts}


def origin(record: RunRecord) -> dict[str, Any]:
    """The others: what it was made from, and digests."""
    return {name: value for name, value in (record.submission or {}).items() if name not in (*_FIGURES, *_ELSEWHERE)}


def _with_bounds(share: float | dict[str, Any]) -> str:
    """A share, or a dumped interval with its ends and n."""
    if not isinstance(share, dict):
        return words.percent(share)
    interval = Interval.model_validate(share)
    return f"{words.percent(interval.value)} ({words.bounds(interval)}, n = {interval.n:,})"
