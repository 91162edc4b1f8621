"""The report in a real headless browser: every width, the browser of wrong answers, and text that is an attack."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from mathtune.report import build_report
from tests.browser import FLAGS, chromium
from tests.record_fixtures import full_solver, full_verifier, solver_errors, verifier_errors

# A page of frames; what `ask` finds in them becomes the page's title.
WRAPPER = """<title>-</title><body>{frames}<script>onload = async () => {{
  const pages = [...document.querySelectorAll("iframe")].map(frame => frame.contentWindow);
  const soon = () => new Promise(done => setTimeout(done, 50));
  const ask = {ask};
  document.title = JSON.stringify(await ask(pages, soon));
}}</script>"""


def in_browser(folder: Path, ask: str, addresses: list[str], widths: list[int]) -> object:
    """What the script ``ask`` (a function of the frames' windows) says of ``report.html`` at each address and width."""
    frames = "".join(f'<iframe src="report.html{address}" style="border:0;width:{width}px;height:900px"></iframe>'
                     for address, width in zip(addresses, widths, strict=True))
    (folder / "wrapper.html").write_text(WRAPPER.format(frames=frames, ask=ask))
    done = subprocess.run(
        [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
         "--virtual-time-budget=20000", "--dump-dom", (folder / "wrapper.html").as_uri()],
        capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))


@pytest.mark.parametrize("record, errors", [
    pytest.param(full_verifier(), verifier_errors(60), id="verifier"),
    pytest.param(full_solver(), solver_errors(12), id="solver", marks=pytest.mark.slow)])
def test_it_is_shown_without_scrolling_sideways(tmp_path, record, errors):
    errors[0]["question"] = "x" * 3000
    build_report(record, errors, "key: " + "y" * 3000, tmp_path / "report.html")
    opened = (tmp_path / "report.html").read_text().replace("<details", "<details open")
    (tmp_path / "report.html").write_text(opened)
    ask = "pages => pages.map(({document: page}) => [page.documentElement.scrollWidth, page.querySelectorAll('svg').length])"
    pictures = opened.count("<svg")
    assert in_browser(tmp_path, ask, [""] * 3, [400, 700, 1280]) == [[width, pictures] for width in (400, 700, 1280)]


LOOK = """pages => pages.map(page => {
  const found = [...page.document.querySelectorAll("#found > details")];
  return {count: page.document.getElementById("found-count").textContent, shown: found.length,
          first: found[0]?.querySelector(".row").textContent ?? null, plain: !!page.document.getElementById("listed")};
})"""


def test_wrong_answers_are_filtered_by_the_address(tmp_path):
    """260 rows: every third a false positive, every fifth a fraction, every fourth of cakes; P(True) nears 1/2 to the end."""
    build_report(full_verifier(), verifier_errors(260), "", tmp_path / "report.html")
    addresses = ["", "#errors?kind=false+positive", "#errors?answer+type=fraction&kind=false+negative",
                 "#errors?q=CAKES+%3C%3C17*", "#errors?sort=unsure", "#errors?kind=no+such&answer+type=no+such",
                 "#errors?q=zzz"]
    found = in_browser(tmp_path, LOOK, addresses, [900] * len(addresses))
    assert [(one["count"], one["shown"], one["first"]) for one in found] == [
        ("260 of 260", 25, "row 0"), ("87 of 260", 25, "row 0"), ("35 of 260", 25, "row 74"), ("1 of 260", 1, "row 185"),
        ("260 of 260", 25, f"row {37 * 259}"), ("260 of 260", 25, "row 0"), ("0 of 260", 0, None)]
    assert not any(one["plain"] for one in found)


@pytest.mark.slow
def test_a_person_filters_opens_and_asks_for_more(tmp_path):
    build_report(full_verifier(), verifier_errors(60), "", tmp_path / "report.html")
    ask = """async ([page], soon) => {
      const doc = page.document, form = doc.getElementById("filters"), said = {};
      const shown = () => doc.querySelectorAll("#found > details").length;
      const count = () => doc.getElementById("found-count").textContent;
      said.button = doc.getElementById("found-more").textContent;
      doc.getElementById("found-more").click();
      said.rest = doc.getElementById("found-more").textContent;
      said.more = [shown(), doc.activeElement.textContent.slice(0, 7)];
      form.elements.q.value = "buns";
      form.elements.q.dispatchEvent(new Event("input", {bubbles: true}));
      said.searched = [count(), page.location.hash];
      doc.querySelector("#found summary").click();
      await soon();
      said.opened = [...doc.querySelectorAll("#found details[open] dt")].map(title => title.textContent);
      said.marked = [...new Set([...doc.querySelectorAll("#found mark")].map(mark => mark.textContent))];
      page.location.hash = "#errors?kind=false+negative";
      await soon();
      said.linked = [count(), form.elements.q.value, form.elements.namedItem("kind").value, page.scrollY > 0];
      form.querySelector("button[type=reset]").click();
      await soon();
      said.cleared = [count(), page.location.hash, shown()];
      return said;
    }"""
    assert in_browser(tmp_path, ask, [""], [900]) == {
        "button": "Show 25 more of 35", "rest": "Show the other 10", "more": [50, "row 925"],
        "searched": ["15 of 60", "#errors?q=buns"],
        "opened": ["Question", "Proposed answer", "Solution", "answer type", "solution length"], "marked": ["buns"],
        "linked": ["40 of 60", "", "false negative", True], "cleared": ["60 of 60", "#errors", 25]}


@pytest.mark.slow
def test_what_a_model_says_does_nothing(tmp_path):
    attack = "</script><script>document.title = 'x'; top.owned = 1</script><img src=x onerror='top.owned = 1'><!--<script>"
    errors = [error | {"question": attack, "completion": attack, "given": attack, "kind": attack, "slices": {"by": attack}}
              for error in solver_errors(3)]
    build_report(full_solver(), errors, attack, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").write_text(page.replace("</main>", "</main><script>top.owned = 2</script>"))
    ask = """async ([page], soon) => {
      page.document.querySelectorAll("#found summary").forEach(line => line.click());
      await soon();
      return [page.document.title, window.owned ?? null, page.document.querySelectorAll("img, iframe, object").length,
              page.document.querySelectorAll("#found script").length,
              page.document.querySelectorAll("#found details[open] dd").length,
              page.document.querySelector("#found dd").textContent];
    }"""
    assert in_browser(tmp_path, ask, [""], [900]) == ["gsm8k-solver · mathtune report", None, 0, 0, 12, attack]
