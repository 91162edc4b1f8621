"""The report: what it says, and that it is one safe file. ``test_report_browser`` has a browser open it."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mathtune.metrics import compare, interval
from mathtune.report import build, build_report
from mathtune.report.markdown import run_markdown
from mathtune.report.pictures import charts_of
from mathtune.report.solver_charts import samples_chart
from mathtune.report.submission import mixtures
from mathtune.report.words import (
    base_name,
    duration,
    fact,
    fitted_effect,
    forgetting_rows,
    number,
    p_value,
    temperature,
    verdict,
)
from mathtune.report.wrong_answers import PAGE_BYTES
from mathtune.run_record import LeftOut, Redone, RunRecord
from mathtune.verifier_metrics import verifier_metrics
from tests.figure_fixtures import calibration, forgetting, samples
from tests.record_fixtures import (
    full_solver,
    full_verifier,
    solver_errors,
    solver_record,
    verdicts,
    verifier_errors,
    verifier_record,
)

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Outline(HTMLParser):
    """Tags, attributes, text and scripts of a page; fails at a tag that is closed out of order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.scripts = [], [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    def value(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def page_of(folder: Path, record, errors=(), recipe="name: demo\n") -> str:
    build_report(record, list(errors), recipe, folder / "report.html")
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("exact", [True, False])
def test_what_happened_on_the_way_and_what_was_left_out_is_told(tmp_path, exact):
    record = verifier_record()
    links = list(record.links)
    links[0] = links[0].model_copy(update={"redone": Redone(steps=7, largest_loss_difference=0.0 if exact else 2.5e-4),
                                           "incidents": ["the engine died (signal SIGKILL); a fresh one goes on"]})
    links[1] = links[1].model_copy(update={"verdict": "accepted by a person"})
    worse = LeftOut(number=4, title="sft[60000:80000)", verdict="rejected", versus_parent=links[2].versus_parent)
    record = record.model_copy(update={"links": links, "left_out": [worse], "exact": exact})
    text = Outline(page_of(tmp_path, record)).text
    assert "the engine died (signal SIGKILL)" in text
    assert f"7 steps were done again after interruptions; their losses differ by at most {'0' if exact else '2.50e−04'}" in text
    assert "accepted by a person, although it was rejected as worse than its parent" in text
    assert ("ends here with the same bytes" in text) == exact and ("hardware.deterministic=true" in text) != exact
    assert "sft[60000:80000) rejected" in text
    quiet = Outline(page_of(tmp_path, verifier_record())).text
    assert "What happened on the way" not in quiet and "Left out" not in quiet


def test_a_verifiers_report_says_what_came_of_it(tmp_path):
    record = verifier_record()
    page = page_of(tmp_path, record, verifier_errors(60), "name: nyu-verifier  # <recipe>\n")
    outline = Outline(page)
    last = record.links[-1]
    assert verdict(record) in outline.text
    assert "name: nyu-verifier # <recipe>" in outline.text
    assert page.count("<svg") == 6  # accuracy, scores by class, reliability, threshold, training wide and narrow
    for needed in ("malformed", "says right", "judged wrong", "served from chain", "50 of 60",
                   "set aside 888", "share judged True 41.3%", "40,000–60,000", "2.13.0", f"pool {record.pins['pool'][:12]} ",
                   "PeftModel.from_pretrained", f"always the same verdict: {last.metrics.majority:.1%}",
                   last.adapter_digest[:8]):
        assert needed in outline.text
    assert record.pins["pool"] in outline.value("title")
    assert str(last.metrics.words.confusion["true"]["malformed"]) in outline.text
    assert outline.text.count("P(True)") >= 50


def shape(record: RunRecord, errors: list | None = None, slow: bool = False, *, name: str):
    return pytest.param(record, errors or [], id=name, marks=[pytest.mark.slow] if slow else [])


UNEVALUATED = [link.model_copy(update={"metrics": None, "versus_parent": None}) for link in verifier_record().links]
SHAPES = [
    shape(full_verifier(), verifier_errors(3), name="whole"),
    shape(verifier_record(), verifier_errors(3, bare=True), name="older"),
    shape(verifier_record(chunks=0, base=False, submission=None, data={}, versions={}, pins={}, seconds={}), name="nothing"),
    shape(verifier_record(rows=0), name="no rows"),
    shape(verifier_record(base=False), slow=True, name="no base"),
    shape(verifier_record(words=0), slow=True, name="no words"),
    shape(verifier_record(chunks=1), verifier_errors(1), slow=True, name="one link"),
    shape(verifier_record(chunks=0), slow=True, name="no link"),
    shape(full_verifier(chunks=40), slow=True, name="forty links"),
    shape(verifier_record(rows=1, words=1), slow=True, name="one row"),
    shape(verifier_record(links=UNEVALUATED, base=None, versus_base=None), name="not evaluated"),
    shape(full_solver(), solver_errors(5), name="whole solver"),
    shape(solver_record(), solver_errors(5), slow=True, name="older solver"),
    shape(solver_record(rows=0), name="solver without rows"),
    shape(solver_record(links=solver_record().links[:1]), slow=True, name="solver without GRPO"),
    shape(solver_record(links=solver_record().links[2:]), solver_errors(1), slow=True, name="GRPO alone"),
]


@pytest.mark.parametrize("record, errors", SHAPES)
def test_every_shape_of_a_run_makes_one_safe_file(tmp_path, record, errors):
    page = page_of(tmp_path, record, errors)
    outline = Outline(page)
    assert page.startswith("<!doctype html>")
    assert "link" not in outline.tags and outline.value("type").count("application/json") == bool(errors)
    assert outline.tags.count("script") == 2 * bool(errors)
    (policy,) = [value for value in outline.value("content") if value.startswith("default-src")]
    if errors:
        allowed = base64.b64encode(hashlib.sha256(outline.scripts[-1].encode()).digest()).decode()
        assert f"script-src 'sha256-{allowed}';" in policy and "default-src 'none';" in policy
    targets = [value for name, value in outline.attributes if name in {"src", "href", "xlink:href", "action", "srcset"}]
    assert all(target.startswith("#") for target in targets)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = outline.value("id")
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r'(?:url\(|href=")#([^")?]+)', page))  # what follows a ? is for the script
    assert referenced <= set(ids)
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", page.lower())
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert len(page) < 1_000_000


def test_the_solvers_report_shows_grpo(tmp_path):
    record = solver_record()
    outline = Outline(page_of(tmp_path, record, solver_errors(7)))
    for needed in ("After 2 chunks and GRPO the solver solves", "KL", "right answer", "gave no answer", "cut off",
                   "reward 0.", "as #### N", "FOLDER_OF_THE_BASE"):
        assert needed in outline.text
    assert outline.tags.count("svg") == 5


def test_what_a_model_or_a_question_says_is_never_markup(tmp_path):
    attack = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>"\'>{{ 7 * 7 }}'
    error = {**verifier_errors(1)[0], "question": attack, "solution": attack, "answer": attack}
    record = verifier_record(name=attack, chain=attack, base_model=attack, data={attack: {attack: attack}},
                             versions={attack: attack}, pins={attack: attack}, seconds={attack: 1.0},
                             submission={attack: attack})
    error |= {"kind": attack, "slices": {attack: attack}}
    outline = Outline(page_of(tmp_path, record, [error], attack))
    assert outline.tags.count("script") == 2 and "img" not in outline.tags
    assert not any(name.startswith("on") for name, _ in outline.attributes)
    assert outline.text.count("<script>alert(1)</script>") >= 10
    assert json.loads(outline.scripts[0])["rows"][0]["texts"] == [attack] * 3
    solver = {**solver_errors(1)[0], "completion": attack, "given": attack, "gold": attack}
    outline = Outline(page_of(tmp_path, solver_record(), [solver]))
    assert outline.tags.count("script") == 2 and "img" not in outline.tags
    assert attack not in run_markdown(record, {})


def test_the_whole_verifiers_report_shows_every_part(tmp_path):
    record = full_verifier()
    page = page_of(tmp_path, record, verifier_errors(300))
    outline = Outline(page)
    assert page.count("<svg") == 7  # accuracy, reliability, threshold, scores, training twice, lengths
    for needed in ("A temperature of 1.62 and a threshold of 0.437 were fitted on 1,000 rows", "+1.2 (+0.3 to +2.1) points",
                   "19 rows gained, 7 lost; p = 0.029", "0.081 → 0.024", "0.094 0.085–0.103", "By generator",
                   "175B verification",
                   "n = 1,000 · 50.0% True", "lost the middle of their prompt", "share trained 0.5%", "peak memory 23.4 GiB",
                   "after chunk 3", "Leak: 3 of 10,000 questions of validation stand word for word in training pool",
                   "similarity 0.86", "What is 12 + 30?",
                   "Of the test rows 41.3% (40.3–42.2, n = 10,000) are judged True, of the "
                   "validation rows 48.1%", "A share of True far from", "50 of 300",
                   "Test rows 87.1%", "n = 10,000; judged by the submission’s threshold, 0.437; always the more frequent "
                   "verdict: 61.3%", "The validation rows are balanced; of the source’s rows 40% are True.",
                   "question ← problem is_correct ← label", "P(True), as it comes", "threshold on P(True), calibrated"):
        assert needed in outline.text, needed
    assert "#errors?kind=false+positive" in outline.value("href")
    assert "#errors?answer%20type=fraction" in outline.value("href")
    assert len(json.loads(outline.scripts[0])["rows"]) == 300
    assert {"#confidence", "#slices", "#forgetting", "#leaks"} <= set(outline.value("href"))


def test_the_whole_solvers_report_shows_every_part(tmp_path):
    record = full_solver()
    outline = Outline(page_of(tmp_path, record, solver_errors(9)))
    for needed in ("pass@16 64.0%", "majority@16", "strict", "flexible", "timed out", "temperature 0.8", "after GRPO 3",
                   "Test rows 26.0%", "from link 2, not the last", "completions of each of 200 problems",
                   "rests on all 500 problems", "peak memory 1.3 GiB of the machine’s, no GPU"):
        assert needed in outline.text, needed
    assert "Leak:" not in outline.text and "#leaks" in outline.value("href")
    assert "#errors?kind=cut%20off" in outline.value("href")


def test_a_part_that_a_record_lacks_has_no_section(tmp_path):
    links = [link.model_copy(update={"metrics": link.metrics.model_copy(update={"calibration": None, "histogram": None})})
             for link in verifier_record().links]
    outline = Outline(page_of(tmp_path, verifier_record(links=links), verifier_errors(3, bare=True)))
    assert not {"#confidence", "#slices", "#forgetting", "#leaks", "#marks"} & set(outline.value("href"))


def test_an_older_runs_record_is_read_and_shown(tmp_path):
    older = verifier_record().model_dump(mode="json", exclude_defaults=True)
    assert "slices" not in older["links"][0]["metrics"] and "leaks" not in older
    assert "judged wrong" in page_of(tmp_path, RunRecord.model_validate(older))


def test_more_wrong_answers_than_a_page_holds(tmp_path):
    errors = [error | {"solution": "<&" * 1500} for error in verifier_errors(400)]
    page = page_of(tmp_path, verifier_record(), errors)
    outline = Outline(page)
    rows = json.loads(outline.scripts[0])["rows"]
    held = len(rows)
    assert 50 < held < 400 and f"of 400 in all {held} are in this page" in outline.text
    assert abs(2 * sum(row["kind"] == "false positive" for row in rows) - held) <= 1
    assert len(page.encode()) < PAGE_BYTES + 1_500_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme):
    """4.5 to 1, WCAG 2.2, 1.4.3; luminance as defined there."""
    style = (Path(build.__file__).parent / "style.css").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme == "dark"]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text in ("ink", "muted", "accent", "second"):
        for ground in ("paper", "card"):
            low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_every_chart_is_a_picture_for_those_who_show_no_svg():
    charts = charts_of(full_verifier())
    assert [chart.name for chart in charts] == ["accuracy", "reliability", "threshold", "scores", "sft", "lengths"]
    for chart in charts[:2]:
        assert chart.png().startswith(b"\x89PNG") and chart.png() == chart.png()


def test_markdown_tells_the_same(tmp_path):
    record = full_verifier()
    chart = charts_of(record)[0]
    text = run_markdown(record, {chart: b"png"})
    assert text.startswith("## After 3 chunks the verifier is right about")
    assert "**Leak:** 3 of 10,000" in text and "| generator | 6B finetuning |" in text
    assert "| words | right |" in text and "](data:image/png;base64,cG5n)" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| Chunk")}) == 1
    assert "Test rows: 87.1%; 95% interval 86.5–87.8" in text and "of the source’s rows 40% are True" in text
    assert "| cut off | 66 | 13.2% |" in run_markdown(full_solver(), {})


def test_a_refused_submission_is_told_first(tmp_path):
    record = verifier_record(chunks=0, base=False, submission={"refused": "every one of the 300 predictions is True"})
    text = Outline(page_of(tmp_path, record)).text
    told = "No submission was written: every one of the 300 predictions is True"
    assert text.index(told) < text.index("Data and submission") and text.count("every one of the 300") == 1
    assert "**No submission was written:** every one" in run_markdown(record, {})


def test_greedy_is_drawn_beside_samples_of_the_same_problems_only():
    assert "greedy 40.0%" in samples_chart(samples(200), interval(80, 200)).svg()
    assert "greedy" not in samples_chart(samples(200), interval(200, 500)).svg()


def test_what_was_fitted_is_told_plainly():
    fitted = calibration()
    assert fitted_effect(fitted).startswith("the accuracy changes by +1.2 (+0.3 to +2.1) points (19 rows gained, 7 lost;")
    same = compare(np.ones(9, bool), np.ones(9, bool))
    worse = compare(np.arange(90) < 60, np.arange(90) < 50)
    for versus, start in ((same, "no verdict changes: "), (worse, "the accuracy changes by −11.1 ")):
        told = fitted_effect(fitted.model_copy(update={"versus_plain": versus}))
        assert told.startswith(start) and told.endswith("there the fitted threshold did not help.")
    assert [temperature(value) for value in (1.62, 0.050000019, 19.99998)] == [
        "1.62", "0.05 (at its bound)", "20.00 (at its bound)"]


def test_names_and_counts_a_person_knows():
    assert [base_name(name) for name in (".mathtune/models/demo-base-2", "meta-llama/Llama-3.1-8B", "my-demo-base-2")] == [
        "builtin:demo", "meta-llama/Llama-3.1-8B", "my-demo-base-2"]
    full = forgetting([1, 2], 2)
    assert forgetting_rows(full) == "200"
    assert forgetting_rows(full.model_copy(update={"accuracy": [*full.accuracy, [interval(70, 80)]]})) == "up to 200"


@pytest.mark.parametrize("validation, source, told", [
    ((500, 500), (400, 600), "The validation rows are balanced; of the source’s rows 40% are True."),
    ((300, 700), (400, 600), "Of the validation rows 30% are True; of the source’s rows 40% are True."),
    ((401, 599), (400, 600), None), ((0, 0), (400, 600), None)])
def test_another_mixture_of_labels_is_told(validation, source, told):
    counts = [dict(zip(("true", "false"), one, strict=True)) for one in (validation, source)]
    data = {"split": {"classes": {"validation": counts[0]}}, "download": {"classes": counts[1]}}
    assert mixtures(verifier_record(chunks=0, base=False, data=data)) == told


def test_odd_text_does_not_end_the_run(tmp_path):
    error = {**solver_errors(1)[0], "completion": "\ud83d half an emoji, " + "x" * 50_000, "given": None}
    page = page_of(tmp_path, solver_record(), [error])
    assert "half an emoji" in page and "characters more" in page and len(page) < 200_000


def test_the_verdict_in_words():
    labels = np.arange(1000) % 2 == 0
    right = np.arange(1000) < 873
    table = verdicts(labels, 1.0, seed=0)
    table = table.set_column(4, table.schema.field(4), [np.where(right, labels, ~labels)])
    base = np.arange(1000) < 502
    weak = verdicts(labels, 1.0, seed=0)
    weak = weak.set_column(4, weak.schema.field(4), [np.where(base, labels, ~labels)])
    record = verifier_record()
    links = [*record.links[:2], record.links[2].model_copy(update={"metrics": verifier_metrics(table, labels)})]
    record = record.model_copy(update={"links": links, "base": verifier_metrics(weak, labels),
                                       "versus_base": compare(base, right)})
    assert verdict(record) == ("After 3 chunks the verifier is right about 87.3% of 1,000 unseen answers (85.1–89.2), "
                               "up from 50.2% for the base; p < 0.001.")
    nothing_learned = record.model_copy(update={
        "links": [links[2].model_copy(update={"metrics": verifier_metrics(weak, labels)})],
        "versus_base": compare(base, base)})
    assert verdict(nothing_learned) == (
        "After 1 chunk the verifier is right about 50.2% of 1,000 unseen answers (47.1–53.3), the same as 50.2% for the "
        "base; p = 1.00, so chance alone could explain it. Always giving the more frequent verdict would reach 50.0%.")
    assert verdict(verifier_record(chunks=0, base=False)) == "Nothing trained; nothing was evaluated."


@pytest.mark.parametrize("value, text", [
    (1_000_000, "1,000,000"), (0.4127, "0.4127"), (2e-4, "2.00e−04"), (True, "yes"), (None, "–"), (float("nan"), "–"),
    ({"true": 3, "share_true": 0.5}, "true 3 · share true 50.0%"),
    ({"a_b": {"true": 1}, "c": 2}, "a b (true 1) · c 2"), ([1, "a"], "1, a"), (-5, "−5"), (12345.6, "12,346"),
    (0.0, "0"), ("a-b", "a-b")])
def test_numbers_as_text(value, text):
    assert number(value) == text


def test_a_dumped_interval_is_read_as_one():
    assert fact("accuracy", interval(80, 100).model_dump(mode="json")) == "80.0% (71.1–86.7), n = 100"
    assert fact("true_share", 0.25) == "25.0%"


def test_times_and_p_values_as_text():
    assert [duration(seconds) for seconds in (0.42, 12.2, 59.7, 185, 7800, None)] == [
        "0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "2 h 10 min", "–"]
    assert [p_value(p) for p in (0.0004, 0.0042, 0.0996, 0.21, 1.0)] == [
        "p < 0.001", "p = 0.004", "p = 0.10", "p = 0.21", "p = 1.00"]


def test_the_same_run_makes_the_same_bytes(tmp_path):
    assert page_of(tmp_path, verifier_record()) == page_of(tmp_path, verifier_record())


@pytest.mark.slow
def test_it_needs_no_home_and_says_nothing(tmp_path):
    code = ("from pathlib import Path; from tests.record_fixtures import verifier_record; "
            "from mathtune.report import build_report; import sys; "
            f"build_report(verifier_record(), [], '', Path({str(tmp_path / 'r.html')!r})); "
            "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={"HOME": "/dev/null", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
