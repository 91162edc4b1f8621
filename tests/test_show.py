"""Tables in terminals of any width: what decides is never cut, and what is left out is named."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flows.fitting import Column, FittingTable
from flows.show import chain_table, result_table
from mathtune.chain import Chain, Link
from mathtune.folders import LocalFolders
from tests.record_fixtures import solver_record, verifier_record

WIDTHS = (60, 80, 120)


def printed(renderable, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable) if not callable(renderable) else renderable(console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width, text
    return text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("record", [verifier_record(rows=300), solver_record()], ids=["verifier", "solver"])
def test_a_run_shows_every_accuracy_with_its_interval_and_range(record, width):
    text = printed(result_table(record.model_dump(mode="json") | {"submission": None}), width)
    for metrics in (record.base, *(link.metrics for link in record.links)):
        accuracy = metrics.accuracy
        assert f"{accuracy.value:.1%}" in text and f"({accuracy.low:.1%} to {accuracy.high:.1%})" in text
    for link in record.links:
        assert link.start is None or f"[{link.start}:{link.end})" in text
        assert f"{link.versus_parent.difference.value * 100:+.1f} points," in text
    assert f"on the {record.base.rows:,} validation rows" in " ".join(text.split())


def test_a_run_says_which_link_was_submitted_and_how_many_test_rows_are_right():
    record = verifier_record().model_dump(mode="json")
    right = {"value": 0.88, "low": 0.838, "high": 0.912, "n": 300}
    text = printed(result_table(record | {"submission": {"link": 1, "accuracy": right}}), 80)
    assert "submission  from link 1, not the head (3)\ntest rows   88.0% right of 300 (83.8% to 91.2%)\n" in text
    text = printed(result_table(record | {"submission": {"link": 3}}), 80)
    assert "head" not in text and "test rows" not in text


@pytest.fixture
def chain(tmp_path) -> Chain:
    """Two accepted links and one that waits for a person."""
    chain = Chain(LocalFolders(tmp_path), "small")
    for number, accuracy in enumerate((0.8, 0.9, 0.4), 1):
        curve = {"steps": [{"loss": 0.7}, {"loss": 0.6 / number}]}
        link = Link(number=number, kind="sft", key=f"k{number}", parent="", start=1200 * number, end=1200 * (number + 1),
                    adapter_digest=f"{number}" * 12, decided_by={}, lora={}, result={"curve": curve, "steps": 75}, versions={})
        chain.publish(number, link.title, link.key, lambda folder, link=link: folder.mkdir(exist_ok=True) or link)
        metrics = {"accuracy": {"value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "n": 300}}
        chain.write_record(link, {"metrics": metrics, **({"verdict": "rejected"} if number == 3 else {})})
        if number < 3:
            chain.settle(link, {}, "accepted")
    return chain


@pytest.mark.parametrize("width", WIDTHS)
def test_a_chain_shows_every_accuracy_and_verdict(chain, width):
    text = printed(lambda console: chain_table(console, chain), width)
    assert [text.count(word) for word in ("accepted", "rejected:", "--accept or --skip")] == [2, 1, 1]
    assert all(f"{low:.1%} to " in text for low in (0.75, 0.85, 0.35)) and "[2400:3600)" in text
    assert ("left out, for the width: adapter" in text) == (width < 120)


cells = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.integers(0, 3), st.tuples(cells, cells)), min_size=1, max_size=7), st.integers(20, 120))
def test_nothing_is_cut_that_could_be_kept_by_leaving_out_less_important_columns(columns, width):
    table = FittingTable("t", [Column(f"c{place}", spare=spare) for place, (spare, _) in enumerate(columns)],
                         [[cell for _, cell in columns]])
    text = printed(table, width)
    essential = [cell for spare, cell in columns if not spare]
    if sum(max(map(len, cell)) + 2 for cell in essential) + 2 <= width:
        for parts in essential:
            assert all(part in text for part in parts), text
    for place, (spare, _) in enumerate(columns):
        if spare and f"c{place}" not in text.partition("left out")[0]:
            assert f"c{place}" in text.partition("left out")[2], text
