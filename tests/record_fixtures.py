"""Run records for the report's tests: a verifier after chunks, a solver after GRPO. Seeded and plausible.

``full_verifier`` and ``full_solver`` hold every part that a record may have; what they show beside the scores is in
``tests.figure_fixtures``.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from mathtune.digests import digest_value
from mathtune.metrics import compare, interval
from mathtune.run_record import EvalStep, LinkRecord, RunRecord, Step, TrainingCurve
from mathtune.schemas import SOLUTIONS, VERDICTS
from mathtune.solver_metrics import solver_metrics
from mathtune.verifier_metrics import verifier_metrics
from tests.figure_fixtures import calibration, forgetting, histogram, leaks, lengths, samples, slices

CREATED = datetime(2025, 3, 14, 15, 9, tzinfo=UTC)


def verdicts(labels: np.ndarray, accuracy: float, seed: int, words: int = 0, malformed: float = 0.05) -> pa.Table:
    """Verdicts that are right with a given probability; the first ``words`` rows have generated words, too."""
    random = np.random.default_rng(seed)
    predictions = np.where(random.random(len(labels)) < accuracy, labels, ~labels)
    margin = np.where(predictions, 1.0, -1.0) * random.uniform(0.1, 4, len(labels))
    said = np.where(predictions, "true", "false").astype(object)
    said[random.random(len(labels)) < malformed] = "malformed"
    said[words:] = None
    return pa.table([np.arange(len(labels)), margin.astype(np.float32), np.zeros(len(labels), np.float32),
                     (1 / (1 + np.exp(-margin))).astype(np.float32), predictions, said.tolist(), said.tolist()],
                    schema=VERDICTS)


def solutions(rows: int, accuracy: float, seed: int) -> pa.Table:
    """Completions that are right with a given probability; some without an answer, some cut off."""
    random = np.random.default_rng(seed)
    correct = random.random(rows) < accuracy
    parsed = correct | (random.random(rows) < 0.8)
    marked = random.random(rows) < 0.9
    completions = [f"so it is {'#### ' if mark else ''}{i}" if found else "I wonder"
                   for i, (mark, found) in enumerate(zip(marked, parsed, strict=True))]
    given = [str(i) if found else None for i, found in enumerate(parsed)]
    outcomes = ["right" if right else "wrong" if found else "cut off" for right, found in zip(correct, parsed, strict=True)]
    return pa.table([np.arange(rows), completions, given, correct, correct & marked, correct, outcomes, parsed,
                     np.full(rows, 9)], schema=SOLUTIONS)


def sft_curve(steps: int, seed: int, high: float, low: float, evaluations: int = 0) -> TrainingCurve:
    """A falling, noisy loss under a warm-up and a cosine."""
    random = np.random.default_rng(seed)
    progress = np.arange(1, steps + 1) / steps
    losses = low + (high - low) * np.exp(-4 * progress) + random.normal(0, 0.05 * high, steps)
    rates = 2e-4 * np.minimum(progress / 0.03, 0.5 * (1 + np.cos(np.pi * progress)))
    logged = [Step(step=i + 1, loss=losses[i], learning_rate=rates[i], grad_norm=1.0, tokens=4096 * (i + 1),
                   seconds=0.8 * (i + 1)) for i in range(steps)]
    at = [round(steps * (i + 1) / evaluations) for i in range(evaluations)]
    return TrainingCurve(steps=logged, evals=[EvalStep(step=i, eval_loss=losses[:i][-5:].mean() + 0.02) for i in at])


def grpo_curve(steps: int, seed: int) -> TrainingCurve:
    """A rising reward, a growing KL."""
    random = np.random.default_rng(seed)
    right = np.clip(0.25 + 0.2 * np.arange(steps) / steps + random.normal(0, 0.05, steps), 0, 1)
    return TrainingCurve(steps=[
        Step(step=i + 1, loss=0.01, learning_rate=5e-6, reward=right[i] + 0.18, correctness=right[i], format=0.18,
             kl=0.0004 * i, frac_reward_zero_std=0.4, completion_length=96.0, clipped_ratio=0.1) for i in range(steps)])


def verifier_record(chunks: int = 3, rows: int = 1000, base: bool = True, words: int = 200,
                    **changes: Any) -> RunRecord:
    """A verifier after some chunks."""
    labels = np.random.default_rng(0).random(rows) < 0.5
    tables = [verdicts(labels, accuracy, seed, words) for seed, accuracy in
              enumerate([0.5, 0.74, 0.83, 0.87, *[0.88] * chunks][: chunks + 1])]
    right = [table["prediction"].to_numpy() == labels for table in tables]
    links = [
        LinkRecord(
            number=i, kind="sft", start=20_000 * (i - 1), end=20_000 * i, adapter_digest=digest_value(i),
            link_id=digest_value([i]), served=i < chunks, seconds=312.4 * i,
            adapter=f".mathtune/chains/demo/{i:04d}/adapter",
            training=sft_curve(300, i, 0.7 / i, 0.3 / i, evaluations=4),
            facts={"examples": 20_000, "tokens": 4_812_331, "label_tokens": 40_000, "shortened": 12 * i, "dropped": 0},
            metrics=verifier_metrics(tables[i], labels), versus_parent=compare(right[i - 1], right[i]),
        ) for i in range(1, chunks + 1)]
    record = dict(
        name="nyu-verifier", chain="nyu", task="verifier", created=CREATED, base_model="meta-llama/Llama-3.1-8B",
        base=verifier_metrics(tables[0], labels) if base else None, links=links,
        versus_base=compare(right[0], right[-1]) if base and chunks else None,
        data={"download": {"rows": 1_000_000, "test_rows": 10_000},
              "balance": {"found": {"true": 400_012, "false": 599_988}, "kept": {"true": 400_000, "false": 400_000}},
              "split": {"validation": rows, "pool": 798_112, "set_aside": 888, "questions": 741,
                        "classes": {"validation": {"true": 500, "false": 500}}}},
        submission={"rows": 10_000, "true_share": 0.4127, "sha256": digest_value("csv"),
                    "adapter": digest_value(chunks)},
        versions={"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"},
        pins={"base": digest_value("base"), "tokenizer": digest_value("tokenizer"), "pool": digest_value("pool")},
        seconds={"download": 81.2, "balance": 12.9, "train-chunk[0:20000)": 312.4, "evaluate": 44.0, "report": 1.2})
    return RunRecord(**record | changes)


def solver_record(rows: int = 200, **changes: Any) -> RunRecord:
    """A solver after two chunks and GRPO."""
    tables = [solutions(rows, accuracy, seed) for seed, accuracy in enumerate([0.08, 0.2, 0.26, 0.33])]
    right = [table["correct"].to_numpy() for table in tables]
    links = [
        LinkRecord(
            number=i, kind="grpo" if i == 3 else "sft", start=None if i == 3 else 500 * (i - 1),
            end=None if i == 3 else 500 * i, adapter_digest=digest_value(i), link_id=digest_value([i]),
            training=grpo_curve(120, i) if i == 3 else sft_curve(60, i, 1.4 / i, 0.6 / i),
            facts={"examples": 500, "left_out": 3, "alpha": 32} if i == 3 else {"examples": 500, "shortened": 0},
            metrics=solver_metrics(tables[i]), versus_parent=compare(right[i - 1], right[i]),
        ) for i in (1, 2, 3)]
    record = dict(
        name="gsm8k-solver", chain="gsm8k", task="solver", created=CREATED, base_model="builtin:demo",
        base=solver_metrics(tables[0]), links=links, versus_base=compare(right[0], right[-1]),
        data={"download": {"rows": 7473}, "split": {"validation": rows, "pool": 7273, "set_aside": 0}})
    return RunRecord(**record | changes)


def full_verifier(chunks: int = 3, rows: int = 2000) -> RunRecord:
    """A verifier's record with every part that there is."""
    record = verifier_record(chunks, rows)
    links = [link.model_copy(update={"lengths": lengths(link.number), "trainable": 41_943_040, "parameters": 8_072_204_288,
                                     "peak_gib": 23.4}) for link in record.links]
    figures = {"calibration": calibration(), "histogram": histogram(rows), "slices": slices(rows, 0.88, balance=True)}
    links[-1] = links[-1].model_copy(update={"metrics": links[-1].metrics.model_copy(update=figures)})
    return record.model_copy(update={
        "links": links, "forgetting": forgetting([link.number for link in links], chunks), "leaks": leaks(exact=3),
        "data": record.data | {"download": record.data["download"] | {
            "classes": {"true": 400_012, "false": 599_988}, "test_classes": {"true": 3_870, "false": 6_130, "unknown": 0},
            "columns": {"question": "problem", "is_correct": "label"}}},
        "submission": record.submission | {
            "link": chunks, "threshold": 0.437, "temperature": 1.62, "accuracy": interval(8713, 10_000).model_dump(mode="json"),
            "true_share": interval(4127, 10_000).model_dump(mode="json"),
            "validation_true_share": interval(962, 2000).model_dump(mode="json"),
            "notices": ["A share of True far from the validation's: are these rows like those?"]}})


def full_solver(rows: int = 500) -> RunRecord:
    """A solver's record with every part that there is; the predictions on the test rows are from the link before GRPO."""
    record = solver_record(rows)
    links = [link.model_copy(update={"lengths": lengths(link.number) if link.kind == "sft" else None, "peak_rss_gib": 1.26})
             for link in record.links]
    figures = {"samples": samples(200), "slices": slices(rows, 0.33, balance=False)}
    links[-1] = links[-1].model_copy(update={"metrics": links[-1].metrics.model_copy(update=figures)})
    return record.model_copy(update={"links": links, "forgetting": forgetting([1, 2, 3], chunks=2),
                                     "leaks": leaks(exact=0), "submission": {
                                         "rows": 1319, "link": 2, "accuracy": interval(343, 1319).model_dump(mode="json")}})


ANSWER_TYPES = ["integer", "decimal", "fraction", "expression", "text"]


def verifier_errors(count: int, bare: bool = False) -> list[dict[str, Any]]:
    """Wrong verdicts on invented problems, the most confident first; ``bare`` ones have no kind and no slices."""
    wares = ["loaves", "cakes", "buns", "rolls"]
    errors = []
    for i in range(count):
        label, ware = i % 3 != 0, wares[i % 4]
        p_true = 0.5 * (i + 1) / (count + 1)
        errors.append({
            "row_id": 37 * i, "question": f"A baker makes {i + 12} {ware} a day and sells each for $3.\nShe bakes on "
            "six days a week. How much does she earn in four weeks?", "answer": str(3 * 24 * (i + 12)),
            "solution": f"She makes {i + 12}*6=<<{i + 12}*6={6 * (i + 12)}>>{6 * (i + 12)} {ware} a week.\n"
            f"In four weeks that is {24 * (i + 12)} {ware}, so ${72 * (i + 12)}.\n#### {72 * (i + 12)}",
            "label": label, "p_true": p_true if label else 1 - p_true})
        if not bare:
            errors[-1] |= {"kind": "false negative" if label else "false positive",
                           "slices": {"answer type": ANSWER_TYPES[i % 5], "solution length": ["short", "long"][i % 2]}}
    return errors


def solver_errors(count: int) -> list[dict[str, Any]]:
    """Wrong solutions of invented problems."""
    return [{"row_id": 11 * i, "question": f"What is {i} + {i + 5}?", "gold": str(2 * i + 5),
             "given": None if i % 3 == 0 else str(2 * i + 4), "completion": f"{i} + {i + 5} is {2 * i + 4}",
             "finished": i % 3 != 0} for i in range(count)]
