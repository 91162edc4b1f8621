"""Puts a run's record, its wrong answers and its recipe into one HTML file that needs no script and no network.

Leaves out every computation: figures come from the record (``mathtune.metrics`` made them), pictures from ``charts``.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from mathtune.figures import SolverMetrics
from mathtune.files import write_atomically
from mathtune.report import charts, words
from mathtune.run_record import LinkRecord, RunRecord

SHOWN_ERRORS = 50
LONGEST_TEXT = 4000  # characters of one field of a wrong answer; a runaway completion must not fill the page
_FOLDER = Path(__file__).parent


def build_report(record: RunRecord, errors: list[dict[str, Any]], recipe_yaml: str, out: Path) -> None:
    """Writes the report, replacing an older one in one step.

    Args:
        record: the run's figures.
        errors: wrong answers of the last evaluated link, worst first; the first 50 are shown. Verifier: ``row_id``,
            ``question``, ``answer``, ``solution``, ``label``, ``p_true``. Solver: ``row_id``, ``question``, ``gold``,
            ``given``, ``completion``, ``finished``.
        recipe_yaml: the resolved recipe, as text.
        out: the HTML file.
    """
    last = words.last_evaluated(record)
    page = _template().render(
        record=record, recipe=recipe_yaml, style=Markup((_FOLDER / "style.css").read_text()),
        verdict=words.verdict(record), last=last, incidents=_incidents(record), pictures=_pictures(record),
        errors=errors[:SHOWN_ERRORS], error_count=len(errors), loading=_loading(record),
        answers=_answers(last.metrics) if last and record.task == "solver" else None)
    # A lone surrogate in a completion has no UTF-8; it becomes a question mark rather than the end of the run.
    write_atomically(out, page.lstrip().encode("utf-8", "replace"))


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.globals["words"] = words
    shown = (words.percent, words.bounds, words.points, words.p_value, words.loss, words.number, words.label,
             words.duration, words.link_range)
    environment.filters |= {filter.__name__: filter for filter in shown} | {"cut": _cut, "progress": _progress}
    return environment.get_template("template.html.j2")


def _pictures(record: RunRecord) -> dict[str, Markup | None]:
    """SVG elements by name. Training comes twice, for wide and for narrow pages; the style sheet shows one."""
    sft = [link for link in record.links if link.kind == "sft"]
    grpo = [link for link in record.links if link.kind == "grpo"]
    pictures = {
        "accuracy": charts.accuracy_chart(record),
        "loss_wide": charts.training_chart(sft, charts.SFT_PANELS, "loss-wide", 960, 340),
        "loss_narrow": charts.training_chart(sft, charts.SFT_PANELS, "loss-narrow", 400, 340),
        "grpo_wide": charts.training_chart(grpo, charts.GRPO_PANELS, "grpo-wide", 960, 340),
        "grpo_narrow": charts.training_chart(grpo, charts.GRPO_PANELS, "grpo-narrow", 400, 340),
    }
    return {name: Markup(svg) if svg else None for name, svg in pictures.items()}


def _progress(link: LinkRecord) -> str:
    """First and last of what training was to change: the loss of SFT, the reward of GRPO (its loss means nothing)."""
    field = "loss" if link.kind == "sft" else "reward"
    values = [value for step in link.training.steps if (value := getattr(step, field)) is not None]
    if not values:
        return words.UNDEFINED
    return f"{'reward ' if field == 'reward' else ''}{words.loss(values[0])} → {words.loss(values[-1])}"


def _answers(metrics: SolverMetrics) -> dict[str, int]:
    """How a solver's completions end, each in one class."""
    return dict(metrics.outcomes)


def _incidents(record: RunRecord) -> list[tuple[str, str]]:
    """What interrupted or changed the training of a link, each with the link's title."""
    shown = []
    for link in record.links:
        title = f"{'Chunk' if link.kind == 'sft' else 'GRPO'} {link.number}"
        happened = list(link.incidents)
        if link.redone.attempts > 1:
            held = f"packs of {link.pack_tokens:,} tokens" if link.pack_tokens else f"micro-batches of {link.micro_batch}"
            happened.append(f"trained in {link.redone.attempts} attempts, at the end with {held}")
        if link.redone.steps:
            happened.append(f"{link.redone.steps} steps were done again after interruptions; their losses differ by at most "
                            f"{words.number(link.redone.largest_loss_difference)}")
        if link.verdict != "accepted":
            happened.append(f"{link.verdict}, although it was rejected as worse than its parent")
        shown += [(title, what) for what in happened]
    return shown


def _cut(text: Any) -> str:
    text = words.UNDEFINED if text is None else str(text)
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]} … ({rest:,} characters more)"


def _loading(record: RunRecord) -> str | None:
    """Python that loads the last adapter; None where there is none."""
    if not record.links:
        return None
    adapter = record.links[-1].adapter or "FOLDER_OF_THE_ADAPTER"
    # A builtin base is a folder in this project's cache, no name that transformers knows.
    base = "FOLDER_OF_THE_BASE" if record.base_model.startswith("builtin:") else record.base_model
    return (f"from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"base = AutoModelForCausalLM.from_pretrained({base!r})\n"
            f"model, tokenizer = PeftModel.from_pretrained(base, {adapter!r}), "
            f"AutoTokenizer.from_pretrained({adapter!r})")
