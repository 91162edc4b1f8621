"""What a sweep found: a trial's cost and accuracy, and which differences from the best one are real.

The paired tests are of the same validation rows, Holm-corrected over all of them (Holm 1979). The best trial was chosen by
these very rows: how far the others are behind it is told somewhat too large, and which are really worse is not.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime
from statsmodels.stats.multitest import multipletests

from mathtune.comparison import Scored, correct_on_common
from mathtune.digests import digest_value
from mathtune.figures import SURE, Comparison, Interval, Part
from mathtune.metrics import compare, share
from mathtune.run_record import LinkRecord
from mathtune.sweep import Trial

State = Literal["done", "failed", "not run"]


class TrialRecord(Part):
    """One trial.

    Attributes:
        name, values: as of ``mathtune.sweep.Trial``.
        state: failed: ``error`` says why; not run: the sweep was stopped before.
        link: the last evaluated link of its chain.
        trainable, parameters: trained parameters of that link, and those of base and adapter together.
        seconds: of training, over all links.
        peak_gib: most of a GPU's memory, by torch; None on a CPU.
        peak_rss_gib: without a GPU: most of the engine's memory, its program included.
        accuracy: on the rows that all trials were scored on.
        versus_best: this trial against the best, on the same rows; None for the best.
        p_adjusted: p of that, corrected for the number of such comparisons.
        verdict: in words.
        recipe_digest, metrics_digest: what it was made by, and what its run left; where both still hold, it is served.
    """

    name: str
    values: dict[str, Any]
    state: State
    error: str | None = None
    link: str | None = None
    trainable: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    peak_gib: float | None = None
    peak_rss_gib: float | None = None
    accuracy: Interval | None = None
    versus_best: Comparison | None = None
    p_adjusted: float | None = None
    verdict: str = ""
    recipe_digest: str
    metrics_digest: str | None = None


class SweepRecord(Part):
    """A sweep.

    Attributes:
        best: the name of the most accurate trial; None where none is done.
        trials: in the order of the grid.
        base: accuracy of the base without an adapter, where all trials have the same.
        majority: verifier: accuracy of always saying the more frequent label, on the same rows.
    """

    name: str
    created: AwareDatetime
    best: str | None
    trials: list[TrialRecord]
    base: Interval | None = None
    majority: float | None = None

    def beside_base(self, files: list[Path]) -> "SweepRecord":
        """The same with ``base`` and ``majority``, read from the ``metrics.json`` of the trials that are done."""
        bases = [json.loads(file.read_text()).get("base") for file in files]
        if not bases or bases[0] is None or any(base != bases[0] for base in bases):
            return self
        return self.model_copy(update={"base": Interval(**bases[0]["accuracy"]), "majority": bases[0].get("majority")})


def trial_costs(links: list[LinkRecord]) -> dict[str, Any]:
    """What a trial's links cost together, as fields of ``TrialRecord``."""
    def most(name: str) -> float | None:
        return max((value for link in links if (value := getattr(link, name)) is not None), default=None)

    last = links[-1]
    return {"trainable": last.trainable, "parameters": last.parameters, "seconds": sum(link.seconds or 0 for link in links),
            "peak_gib": most("peak_gib"), "peak_rss_gib": most("peak_rss_gib")}


def judged(trials: list[TrialRecord], scored: dict[str, Scored]) -> tuple[str | None, list[TrialRecord]]:
    """The best trial's name, and all trials with their accuracies, held against it.

    Args:
        scored: what the last link of each trial that is done said of the validation rows, by the trial's name.
    """
    done = [trial for trial in trials if trial.name in scored]
    if not done:
        return None, trials
    correct, questions = correct_on_common([scored[trial.name] for trial in done])
    right = dict(zip((trial.name for trial in done), correct, strict=True))
    best = max(done, key=lambda trial: (right[trial.name].sum(), -(trial.trainable or 0)))  # of equals the smallest
    others = [trial.name for trial in done if trial is not best]
    versus = {name: compare(right[best.name], right[name], questions) for name in others}
    adjusted = dict(zip(others, holm([versus[name].p for name in others]), strict=True))
    accuracy = {name: share(flags, questions) for name, flags in right.items()}
    verdicts = {name: "really worse" if p < SURE else "could be chance" for name, p in adjusted.items()}
    verdicts[best.name] = "the best" if others and set(verdicts.values()) == {"really worse"} else "highest"
    return best.name, [_judged(trial, *(found.get(trial.name) for found in (accuracy, versus, adjusted, verdicts)))
                       for trial in trials]


def holm(p_values: list[float]) -> list[float]:
    """Each p, corrected by Holm for how many there are."""
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def _judged(trial: TrialRecord, accuracy: Interval | None, versus: Comparison | None, p: float | None,
            verdict: str | None) -> TrialRecord:
    if accuracy is None:
        return trial
    return trial.model_copy(update={"accuracy": accuracy, "versus_best": versus, "p_adjusted": p, "verdict": verdict})


def empty_record(trial: Trial, state: State, **fields: Any) -> TrialRecord:
    """A trial without figures."""
    return TrialRecord(name=trial.name, values=trial.values, state=state, recipe_digest=recipe_digest(trial), **fields)


def recipe_digest(trial: Trial) -> str:
    """Of all that decides the trial."""
    return digest_value(trial.recipe.model_dump(mode="json"))


def as_csv(record: SweepRecord) -> str:
    """One line a trial: its values by dotted key, then its figures."""
    keys = list(dict.fromkeys(key for trial in record.trials for key in trial.values))
    lines = []
    for trial in record.trials:
        accuracy, versus = trial.accuracy, trial.versus_best
        values = [trial.values.get(key, "") for key in keys]
        lines.append([
            trial.name, *(json.dumps(value) if isinstance(value, list) else value for value in values), trial.state,
            trial.trainable, trial.parameters, trial.seconds, trial.peak_gib, trial.peak_rss_gib,
            *((accuracy.value, accuracy.low, accuracy.high, accuracy.n) if accuracy else [None] * 4),
            *((versus.difference.value, versus.p, trial.p_adjusted) if versus else [None] * 3), trial.verdict, trial.error])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *keys, "state", "trainable", "parameters", "seconds", "peak_gib", "peak_rss_gib", "accuracy",
                     "accuracy_low", "accuracy_high", "n", "versus_best", "p", "p_holm", "verdict", "error"])
    writer.writerows(lines)
    return text.getvalue()
