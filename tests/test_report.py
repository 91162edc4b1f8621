"""The report: what it says, that it is one safe file, and that a browser shows it at every width."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mathtune.metrics import compare, interval
from mathtune.report import build_report
from mathtune.report.words import duration, fact, number, p_value, verdict
from mathtune.run_record import LeftOut, Redone
from mathtune.verifier_metrics import verifier_metrics
from tests.record_fixtures import solver_errors, solver_record, verdicts, verifier_errors, verifier_record

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails at a tag that is closed out of order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
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
        self.texts.append(data)

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
    assert page.count("<svg") == 3  # accuracy, training wide and narrow
    for needed in ("malformed", "says right", "judged wrong", "served from chain", "The first 50 of 60",
                   "set aside 888", "share true 41.3%", "40,000–60,000", "2.13.0", record.pins["pool"],
                   "PeftModel.from_pretrained", f"always the same verdict: {last.metrics.majority:.1%}",
                   last.adapter_digest[:8]):
        assert needed in outline.text
    assert str(last.metrics.words.confusion["true"]["malformed"]) in outline.text
    assert outline.text.count("P(True)") == 50


@pytest.mark.parametrize("record, errors", [
    (verifier_record(), verifier_errors(3)),
    (verifier_record(base=False), []),
    (verifier_record(words=0), []),
    (verifier_record(chunks=1), verifier_errors(1)),
    (verifier_record(chunks=0), []),
    (verifier_record(chunks=0, base=False, submission=None, data={}, versions={}, pins={}, seconds={}), []),
    (verifier_record(chunks=40), []),
    (verifier_record(rows=0), []),
    (verifier_record(rows=1, words=1), []),
    (verifier_record(links=[link.model_copy(update={"metrics": None, "versus_parent": None})
                            for link in verifier_record().links], base=None, versus_base=None), []),
    (solver_record(), solver_errors(5)),
    (solver_record(rows=0), []),
    (solver_record(links=solver_record().links[:1]), []),
    (solver_record(links=solver_record().links[2:]), solver_errors(1)),
], ids=["whole", "no base", "no words", "one link", "no link", "nothing", "forty links", "no rows", "one row",
        "not evaluated", "solver", "solver without rows", "solver without GRPO", "GRPO alone"])
def test_every_shape_of_a_run_makes_one_safe_file(tmp_path, record, errors):
    page = page_of(tmp_path, record, errors)
    outline = Outline(page)
    assert page.startswith("<!doctype html>")
    assert "script" not in outline.tags and "link" not in outline.tags
    targets = [value for name, value in outline.attributes if name in {"src", "href", "xlink:href", "action", "srcset"}]
    assert all(target.startswith("#") for target in targets)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = [value for name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
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
    outline = Outline(page_of(tmp_path, record, [error], attack))
    assert "script" not in outline.tags and "img" not in outline.tags
    assert not any(name.startswith("on") for name, _ in outline.attributes)
    assert outline.text.count("<script>alert(1)</script>") >= 10
    solver = {**solver_errors(1)[0], "completion": attack, "given": attack, "gold": attack}
    assert "script" not in Outline(page_of(tmp_path, solver_record(), [solver])).tags


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


def test_it_needs_no_home_and_says_nothing(tmp_path):
    code = ("from pathlib import Path; from tests.record_fixtures import verifier_record; "
            "from mathtune.report import build_report; import sys; "
            f"build_report(verifier_record(), [], '', Path({str(tmp_path / 'r.html')!r})); "
            "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={"HOME": "/dev/null", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("record, errors", [
    (verifier_record(), verifier_errors(60)), (solver_record(), solver_errors(12))], ids=["verifier", "solver"])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, record, errors):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    errors[0]["question"] = "x" * 3000
    build_report(record, errors, "key: " + "y" * 3000, tmp_path / "report.html")
    opened = (tmp_path / "report.html").read_text().replace("<details", "<details open")
    (tmp_path / "report.html").write_text(opened)
    frames = "".join(f'<iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>'
                     for width in (400, 700, 1280))
    (tmp_path / "wrapper.html").write_text(
        f"<title>-</title><body>{frames}<script>onload = () => document.title = "
        "[...document.querySelectorAll('iframe')].map(frame => frame.contentDocument).map("
        "page => page.documentElement.scrollWidth + '/' + page.querySelectorAll('svg').length).join(' ')</script>")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--hide-scrollbars", "--disable-component-update", "--disable-sync", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
         "--dump-dom", (tmp_path / "wrapper.html").as_uri()],
        capture_output=True, text=True, timeout=120)
    pictures = opened.count("<svg")
    assert f"<title>400/{pictures} 700/{pictures} 1280/{pictures}</title>" in done.stdout
