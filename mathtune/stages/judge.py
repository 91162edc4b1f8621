"""Judges a new link against its parent on the same validation rows, and gives it its place in the chain, or none."""

from typing import Any, Literal

from mathtune.chain import Link
from mathtune.errors import ChainError, RejectedLink
from mathtune.figures import Comparison
from mathtune.metrics import compare
from mathtune.stages import Outcome
from mathtune.stages.evaluate import correct_rows, validation_questions
from mathtune.stages.train import chain_pins
from mathtune.store import Artifact
from mathtune.workspace import Workspace

Decision = Literal["accept", "skip"]


def judge(work: Workspace, base: dict[str, Any], parts: Artifact, link: Link, scores: Artifact, parent_scores: Artifact,
          decision: Decision | None) -> Outcome:
    """Accepts a link unless it is significantly worse than its parent; a rejected one waits for a person's decision.

    Args:
        link: published, not in the chain yet.
        scores, parent_scores: of the link and of its parent (the base for the first link) on the validation rows.
        decision: a person's, about a link that was rejected before.

    Raises:
        RejectedLink: the link is worse; it is recorded as rejected, and the head stays.
    """
    before, after = (correct_rows(one, parts.path("validation.parquet")) for one in (parent_scores, scores))
    versus = compare(before, after, validation_questions(parts, len(after)))
    known = work.chain.record(link).get("verdict") == "rejected"
    word = decision if known else None  # not about the links that are trained after the rejected one
    if word is None and (known or is_worse(versus, work.recipe.evaluation.reject_p)):
        work.chain.write_record(link, {"verdict": "rejected", "versus_parent": versus.model_dump(mode="json")})
        raise RejectedLink(f"{link.title} is worse than its parent: {comparison_text(versus)}; the head stays where it was",
                           where=f"chain {work.chain.name}, link {link.number}",
                           remedy="the same command with --accept takes it all the same, with --skip leaves its rows out; "
                           "or change the recipe for this range, for example sft.learning_rate")
    verdict = {None: "accepted", "accept": "accepted by a person", "skip": "skipped"}[word]
    work.chain.write_record(link, {"versus_parent": versus.model_dump(mode="json")})
    work.chain.settle(link, chain_pins(work, base, parts), verdict)
    return Outcome(verdict, False, f"{verdict}: {comparison_text(versus)}")


def is_worse(versus: Comparison, reject_p: float | None) -> bool:
    """Whether the second system is significantly worse than the first."""
    return reject_p is not None and versus.difference.value < 0 and versus.p < reject_p


def comparison_text(versus: Comparison) -> str:
    """The difference in points with its interval and McNemar's p, for people."""
    low, high = versus.difference.low * 100, versus.difference.high * 100
    return (f"{versus.difference.value * 100:+.1f} points ({low:+.1f} to {high:+.1f}), {versus.gained} rows gained, "
            f"{versus.lost} lost of {versus.n:,}, p {versus.p:.2g}")


def check_decision(work: Workspace, decision: Decision | None) -> None:
    """Holds that a decision is about something.

    Raises:
        ChainError: no link waits for one.
    """
    if decision and not work.chain.rejected():
        raise ChainError("no rejected link waits for a decision", where=f"chain {work.chain.name}",
                         remedy=f"leave --{decision} out")
