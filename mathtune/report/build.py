"""Puts a run's record, its wrong answers and its recipe into one HTML file that needs no network.

Its one script filters the wrong answers; the page is whole without it. Leaves out every computation: figures come from the
record (``mathtune.metrics`` made them), pictures from ``mathtune.report.pictures``.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mathtune.files import write_atomically
from mathtune.report import submission, tables, words
from mathtune.report.accuracy_charts import lengths_of
from mathtune.report.pictures import NARROW, charts_of, training_charts
from mathtune.report.wrong_answers import WrongAnswers, prepare
from mathtune.run_record import LinkRecord, RunRecord

# Sections of the page: template in parts/ and id, title, short title for the table of contents. One that renders to
# nothing is not there.
SECTIONS = (
    ("accuracy", "Accuracy, link by link", "Accuracy"),
    ("marks", "Marks and samples", "Marks"),
    ("confidence", "How sure it is", "Confidence"),
    ("slices", "Where it is right", "Slices"),
    ("training", "Training", "Training"),
    ("links", "Links of the chain", "Links"),
    ("forgetting", "What it forgets", "Forgetting"),
    ("errors", "Wrong answers", "Errors"),
    ("leaks", "Questions in two parts of the data", "Leaks"),
    ("data", "Data and submission", "Data"),
    ("again", "To do it again", "Again"),
)
_FOLDER = Path(__file__).parent


def build_report(record: RunRecord, errors: list[dict[str, Any]], recipe_yaml: str, out: Path) -> None:
    """Writes the report, replacing an older one in one step.

    Args:
        record: the run's figures.
        errors: wrong answers of the last evaluated link, those of a kind worst first; as many as fit into 2 MB are shown.
            All have ``row_id``, ``question`` and, if known, ``kind`` and ``slices`` (value by what divides the rows). Verifier:
            ``answer``, ``solution``, ``label``, ``p_true``. Solver: ``gold``, ``given``, ``completion``, ``finished``.
        recipe_yaml: the resolved recipe, as text.
        out: the HTML file.
    """
    environment = _environment()
    script = (_FOLDER / "browser.js").read_text()
    last = words.last_evaluated(record)
    values = _values(record, last, prepare(errors, last.metrics.slices if last else [])) | {"recipe": recipe_yaml}
    sections = [(name, title, short, Markup(body)) for name, title, short in SECTIONS
                if (body := environment.get_template(f"parts/{name}.html.j2").render(values).strip())]
    page = environment.get_template("template.html.j2").render(
        values, sections=sections, style=Markup((_FOLDER / "style.css").read_text()), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    # A lone surrogate in a completion has no UTF-8; it becomes a question mark rather than the end of the run.
    write_atomically(out, page.lstrip().encode("utf-8", "replace"))


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"words": words, "tables": tables, "submission": submission}
    shown = (words.percent, words.bounds, words.points, words.p_value, words.loss, words.score, words.number, words.label,
             words.duration, words.link_range, words.link_title)
    environment.filters |= {filter.__name__: filter for filter in shown} | {"progress": _progress}
    return environment


def _values(record: RunRecord, last: LinkRecord | None, wrong: WrongAnswers) -> dict[str, Any]:
    """What the templates speak of."""
    return {"record": record, "verdict": words.verdict(record), "last": last, "metrics": last.metrics if last else None,
            "wrong": wrong, "wrong_data": Markup(wrong.data), "incidents": _incidents(record),
            "pictures": _pictures(record), "lengths": lengths_of(record.links), "loading": _loading(record)}


def _pictures(record: RunRecord) -> dict[str, Markup]:
    """SVG elements by name. Training comes twice, for wide and for narrow pages; the style sheet shows one."""
    narrow = training_charts(record, NARROW, "-narrow").values()
    return {chart.name: Markup(chart.svg()) for chart in [*charts_of(record), *narrow] if chart}


def _progress(link: LinkRecord) -> str:
    """First and last of what training was to change: the loss of SFT, the reward of GRPO (its loss means nothing)."""
    field = "loss" if link.kind == "sft" else "reward"
    values = [value for step in link.training.steps if (value := getattr(step, field)) is not None]
    if not values:
        return words.UNDEFINED
    return f"{'reward ' if field == 'reward' else ''}{words.loss(values[0])} → {words.loss(values[-1])}"


def _incidents(record: RunRecord) -> list[tuple[str, str]]:
    """What interrupted or changed the training of a link, each with the link's title."""
    shown = []
    for link in record.links:
        happened = list(link.incidents)
        if link.redone.attempts > 1:
            held = f"packs of {link.pack_tokens:,} tokens" if link.pack_tokens else f"micro-batches of {link.micro_batch}"
            happened.append(f"trained in {link.redone.attempts} attempts, at the end with {held}")
        if link.redone.steps:
            happened.append(f"{link.redone.steps} steps were done again after interruptions; their losses differ by at most "
                            f"{words.number(link.redone.largest_loss_difference)}")
        if link.verdict != "accepted":
            happened.append(f"{link.verdict}, although it was rejected as worse than its parent")
        shown += [(words.link_title(link), what) for what in happened]
    return shown


def _loading(record: RunRecord) -> str | None:
    """Python that loads the last adapter; None where there is none."""
    if not record.links:
        return None
    adapter = record.links[-1].adapter or "FOLDER_OF_THE_ADAPTER"
    # An older record names the builtin base, which is a folder in the cache and no name that transformers knows.
    base = "FOLDER_OF_THE_BASE" if record.base_model.startswith("builtin:") else record.base_model
    return "\n".join((
        "from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        f"adapter = {adapter!r}", f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        "model = PeftModel.from_pretrained(base, adapter)", "tokenizer = AutoTokenizer.from_pretrained(adapter)"))
