"""What a run leaves in ``runs/<name>/metrics.json``: figures with their intervals, link by link, and their origin.

The record is all that the report reads besides the wrong answers and the recipe's text. ``model_dump_json`` writes
strict JSON (a figure that is not defined becomes null) and ``RunRecord.model_validate_json`` reads it back. Leaves out
the figures themselves (``mathtune.figures``), how they are computed (``mathtune.metrics``) and look (``mathtune.report``).
"""

from typing import Any, Literal

from pydantic import AwareDatetime

from mathtune.figures import Comparison, Figure, Forgetting, LeakPair, Lengths, Part, SolverMetrics, VerifierMetrics


class Step(Part):
    """What was logged at an optimizer step.

    Attributes:
        step: optimizer step, from 1, within the link.
        loss, learning_rate, grad_norm: of that step, or their mean since the last logged one.
        tokens, seconds: since the link's training began.
        reward, correctness, format: GRPO: mean reward of the completions, and the two rewards it is the sum of.
        frac_reward_zero_std: GRPO: share of prompts whose completions all got the same reward.
        kl: GRPO: divergence from the link that it continues, nats a token.
        completion_length: GRPO: mean tokens.
        clipped_ratio: GRPO: share of completions that the length limit ended.
    """

    step: int
    loss: Figure | None = None
    learning_rate: Figure | None = None
    grad_norm: Figure | None = None
    tokens: int | None = None
    seconds: float | None = None
    reward: Figure | None = None
    correctness: Figure | None = None
    format: Figure | None = None
    frac_reward_zero_std: Figure | None = None
    kl: Figure | None = None
    completion_length: Figure | None = None
    clipped_ratio: Figure | None = None


class EvalStep(Part):
    """The loss on validation rows after an optimizer step."""

    step: int
    eval_loss: Figure


class TrainingCurve(Part):
    """What was logged while a link was trained: the ``curve`` of an engine's result."""

    steps: list[Step] = []
    evals: list[EvalStep] = []


class Redone(Part):
    """Steps done more than once because a checkpoint was older than the interruption.

    Attributes:
        attempts: how often its training was begun.
        steps: how many, over all interruptions.
        largest_loss_difference: between the first time and the others; 0 on a CPU and under hardware.deterministic.
    """

    attempts: int = 1
    steps: int = 0
    largest_loss_difference: float = 0.0


class LinkRecord(Part):
    """One link of the chain, trained in this run or found there.

    Attributes:
        number: place in the chain, from 1.
        kind, start, end: SFT on rows [start, end) of the pool, or GRPO (no range).
        adapter_digest, link_id: what was made, and its name in the chain.
        served: it was in the chain already; this run did not train it.
        training: what was logged.
        facts: small figures of the stage (examples, shortened, label_tokens ...), for the report's tables.
        metrics: on the validation rows; None where it was not evaluated.
        versus_parent: against the link before (the base for the first), on the same rows.
        adapter: folder of the adapter as a person would write it.
        seconds: wall-clock time of its training.
        verdict: how it came into the chain (accepted, or by a person although it was rejected).
        incidents: what happened while it was trained (an engine that died, memory that ran out).
        redone: steps that were done again after interruptions, and by how much their losses differed at most.
        pack_tokens, micro_batch: what one forward pass held at the end: tokens of a pack (SFT), completions (GRPO).
        lengths: tokens of its examples; None where they were not counted.
        trainable, parameters: trained parameters, and those of base and adapter together.
        peak_gib: of a GPU's memory, by torch; None on a CPU, and where training was found finished.
        peak_rss_gib: without a GPU: of the engine's memory, its program included.
    """

    number: int
    kind: Literal["sft", "grpo"]
    start: int | None = None
    end: int | None = None
    adapter_digest: str
    link_id: str
    served: bool = False
    training: TrainingCurve = TrainingCurve()
    facts: dict[str, Any] = {}
    metrics: VerifierMetrics | SolverMetrics | None = None
    versus_parent: Comparison | None = None
    adapter: str | None = None
    seconds: float | None = None
    verdict: Literal["accepted", "accepted by a person"] = "accepted"
    incidents: list[str] = []
    redone: Redone = Redone()
    pack_tokens: int | None = None
    micro_batch: int | None = None
    lengths: Lengths | None = None
    trainable: int | None = None
    parameters: int | None = None
    peak_gib: float | None = None
    peak_rss_gib: float | None = None


class LeftOut(Part):
    """A link that was trained and is not part of what later ones grow from.

    Attributes:
        number, title: place at which it was trained, and its range.
        verdict: rejected (waits for a person), or skipped by one.
        versus_parent: why; None where it is not known any more.
    """

    number: int
    title: str
    verdict: Literal["rejected", "skipped"]
    versus_parent: Comparison | None = None


class RunRecord(Part):
    """A run: its links and figures, and what they were made from.

    Attributes:
        name, chain, task: as in the recipe.
        created: when this state was written.
        base_model: folder or Hub id of the frozen base.
        base: figures of the base without an adapter, on the same rows; None where it was not evaluated.
        links: in the order of the chain.
        left_out: links that were rejected or skipped.
        exact: interrupted work ends with the same bytes here (a CPU, or a GPU under hardware.deterministic).
        versus_base: the last evaluated link against the base, on the same rows.
        forgetting: accuracy on rows of every chunk after each; None where it was not asked for.
        leaks: duplicates of questions between the parts of the data.
        data: facts of each data stage (found, kept, set aside ...) by the stage's name.
        submission: facts of the submission (rows, share of True, digest ...); None where there is none.
        versions: of the libraries.
        pins: digests and revisions that the chain pins.
        seconds: wall-clock time by stage.
    """

    name: str
    chain: str
    task: Literal["verifier", "solver"]
    created: AwareDatetime
    base_model: str
    base: VerifierMetrics | SolverMetrics | None = None
    links: list[LinkRecord] = []
    left_out: list[LeftOut] = []
    exact: bool = True
    versus_base: Comparison | None = None
    forgetting: Forgetting | None = None
    leaks: list[LeakPair] = []
    data: dict[str, dict[str, Any]] = {}
    submission: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    pins: dict[str, str] = {}
    seconds: dict[str, float] = {}
