"""Figures and facts as a person reads them: numbers, intervals, p values, and the verdict on a run in one sentence."""

import math
import re
from pathlib import Path
from typing import Any

from mathtune.calibration import TEMPERATURES
from mathtune.figures import SURE, Calibration, Comparison, Forgetting, Interval, VerifierMetrics
from mathtune.run_record import LinkRecord, RunRecord

UNDEFINED = "–"
LONGEST_TEXT = 4000  # characters of a question, a solution, a completion; a runaway one must not fill the page


def percent(share: float | None) -> str:
    """``0.8734`` as ``87.3%``."""
    return UNDEFINED if share is None or math.isnan(share) else f"{share:.1%}"


def bounds(interval: Interval) -> str:
    """The ends of an interval, ``85.1–89.3``; nothing where it rests on no row."""
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}" if interval.n else ""


def loss(value: float | None) -> str:
    """A loss or a reward to three decimals, three significant digits below 0.1."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return _minus(f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}")


def score(value: float) -> str:
    """A figure between 0 and 1 that is no share of rows, to three decimals: ``0.094``."""
    return UNDEFINED if math.isnan(value) else _minus(f"{value:.3f}")


def points(comparison: Comparison) -> str:
    """A paired difference in percentage points, ``+3.1 (1.2 to 5.0)``."""
    if not comparison.n:
        return UNDEFINED
    low, value, high = (_minus(f"{100 * x:+.1f}") for x in (
        comparison.difference.low, comparison.difference.value, comparison.difference.high))
    return f"{value} ({low} to {high})"


def chance(p: float) -> str:
    """A p value and what follows from it: ``p = 0.21, so chance alone could explain it``."""
    return p_value(p) + ("" if p < SURE else ", so chance alone could explain it")


def p_value(p: float) -> str:
    """``p < 0.001``, ``p = 0.004`` or ``p = 0.21``."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def number(value: Any) -> str:
    """Any small fact as text: thousands separated, four significant digits, dictionaries and lists in a line."""
    match value:
        case None:
            return UNDEFINED
        case bool():
            return "yes" if value else "no"
        case int():
            return _minus(f"{value:,}")
        case float() if not math.isfinite(value):
            return UNDEFINED
        case float() if value == 0 or 1e-3 <= abs(value) < 1e4:
            return _minus(f"{value:.4g}")
        case float():
            return _minus(f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.2e}")
        case dict():
            return " · ".join(f"{label(key)} {f'({fact(key, item)})' if isinstance(item, dict) else fact(key, item)}"
                              for key, item in value.items())
        case list() | tuple():
            return ", ".join(number(item) for item in value)
    return str(value)


def fact(key: str, value: Any) -> str:
    """A fact under its key: shares as percent, a dumped interval with its ends, columns as lines of ``field ← column``,
    everything else as ``number``."""
    if isinstance(value, dict) and value.keys() == Interval.model_fields.keys():
        interval = Interval.model_validate(value)
        return f"{percent(interval.value)} ({bounds(interval)}), n = {number(interval.n)}"
    if key == "columns" and isinstance(value, dict):
        return "\n".join(f"{field} ← {column}" for field, column in value.items())
    return percent(value) if "share" in key and isinstance(value, float) else number(value)


def label(key: str) -> str:
    """A key as words: ``set_aside`` as ``set aside``."""
    return key.replace("_", " ")


def cut(text: Any) -> str:
    """A text of the data or of a model, at most ``LONGEST_TEXT`` characters of it."""
    text = UNDEFINED if text is None else str(text)
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]} … ({rest:,} characters more)"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return UNDEFINED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def link_range(link: LinkRecord) -> str:
    """``0–20,000`` for rows [0, 20000); GRPO covers none."""
    return UNDEFINED if link.start is None else f"{link.start:,}–{link.end:,}"


def link_title(link: LinkRecord) -> str:
    """``Chunk 3``, ``GRPO 4``."""
    return f"{'Chunk' if link.kind == 'sft' else 'GRPO'} {link.number}"


def is_digest(value: Any) -> bool:
    """Whether a fact is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def base_name(base_model: str) -> str:
    """The base as a recipe names it: the folder of the builtin one in the cache is ``builtin:demo``."""
    return "builtin:demo" if re.fullmatch(r"demo-base-\d+", Path(base_model).name) else base_model


def link_facts(link: LinkRecord) -> dict[str, Any]:
    """The small facts of a link that have no column in the table of links."""
    facts = {**link.facts, "trained_parameters": link.trainable, "parameters": link.parameters}
    if link.trainable and link.parameters:
        facts["share_trained"] = link.trainable / link.parameters
    facts |= {"peak_memory": _peak_memory(link), "link": link.link_id, "adapter_digest": link.adapter_digest}
    return {name: value for name, value in facts.items() if value is not None}


def _peak_memory(link: LinkRecord) -> str | None:
    if link.peak_gib:
        return f"{link.peak_gib:.1f} GiB of the GPU’s"
    return f"{link.peak_rss_gib:.1f} GiB of the machine’s, no GPU" if link.peak_rss_gib else None


def overlong(record: RunRecord) -> str:
    """What was done about examples that were too long; nothing where none were."""
    shortened, dropped = (sum(link.facts.get(name, 0) for link in record.links if link.lengths)
                          for name in ("shortened", "dropped"))
    told = [f"{count:,} {what}" for count, what in ((shortened, "lost the middle of their prompt"), (dropped, "were left out"))
            if count]
    return f"{' and '.join(told)} to fit." if told else "All fit."


def temperature(value: float) -> str:
    """A temperature, and whether it is at a bound of those that were tried."""
    bound = any(math.isclose(value, end, rel_tol=1e-3) for end in TEMPERATURES)
    return f"{value:.2f}{' (at its bound)' if bound else ''}"


def fitted_effect(calibration: Calibration) -> str:
    """What temperature and threshold do to the verdicts on the rows that they were not fitted on."""
    versus = calibration.versus_plain
    counts = f"{versus.gained:,} rows gained, {versus.lost:,} lost"
    effect = f"the accuracy changes by {points(versus)} points ({counts}; {chance(versus.p)})"
    if versus.difference.value > 0:
        return f"{effect}."
    return f"{effect if versus.gained or versus.lost else 'no verdict changes'}: there the fitted threshold did not help."


def forgetting_rows(forgetting: Forgetting) -> str:
    """How many rows of a chunk were asked: ``200``, or ``up to 200`` where chunks differ."""
    asked = {cell.n for row in forgetting.accuracy for cell in row}
    return f"{'up to ' if len(asked) > 1 else ''}{max(asked, default=forgetting.rows):,}"


def last_evaluated(record: RunRecord) -> LinkRecord | None:
    """The last link that has figures: what the verdict speaks of."""
    return next((link for link in reversed(record.links) if link.metrics and link.metrics.rows), None)


def trained(links: list[LinkRecord]) -> str:
    """``3 chunks``, ``1 chunk and GRPO``."""
    chunks = sum(link.kind == "sft" for link in links)
    refinements = len(links) - chunks
    parts = [f"{chunks:,} chunk{'' if chunks == 1 else 's'}"] if chunks else []
    parts += [{1: "GRPO"}.get(refinements, f"{refinements} rounds of GRPO")] if refinements else []
    return " and ".join(parts)


def verdict(record: RunRecord) -> str:
    """What came of the run, in a sentence; a second one where the accuracy is not worth its name."""
    link = last_evaluated(record)
    if link is None and record.left_out:
        waiting = [one for one in record.left_out if one.verdict == "rejected"]
        what = "waits for a person's decision" if waiting else "was skipped"
        return f"No link is in the chain: {record.left_out[-1].title} is worse than its parent and {what}."
    if link is None:
        return f"{_capital(trained(record.links) or 'nothing')} trained; nothing was evaluated."
    after = f"After {trained(record.links[: record.links.index(link) + 1])} the {record.task}"
    accuracy = link.metrics.accuracy
    share, sure, rows = percent(accuracy.value), bounds(accuracy), f"{accuracy.n:,}"
    if record.task == "verifier":
        sentence = f"{after} is right about {share} of {rows} unseen answers ({sure})"
    else:
        sentence = f"{after} solves {share} of {rows} unseen problems ({sure})"
    return f"{sentence}{_against_base(record, accuracy.value)}.{_against_majority(link)}"


def _against_base(record: RunRecord, value: float) -> str:
    if record.base is None or not record.base.rows:
        return ""
    base = record.base.accuracy.value
    way = "up from" if value > base else "down from" if value < base else "the same as"
    sentence = f", {way} {percent(base)} for the base"
    if record.versus_base is None:
        return sentence
    return f"{sentence}; {chance(record.versus_base.p)}"


def _against_majority(link: LinkRecord) -> str:
    metrics = link.metrics
    if not isinstance(metrics, VerifierMetrics) or metrics.accuracy.low > metrics.majority:
        return ""
    return f" Always giving the more frequent verdict would reach {percent(metrics.majority)}."


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
