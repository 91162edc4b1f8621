"""The report in W&B, offline for real: its run, figures and pictures are files that ``wandb sync`` would send."""

from types import SimpleNamespace

import pytest

from mathtune.recipe import Tracking
from mathtune.report.pictures import charts_of
from mathtune.report.tables import key_figures
from mathtune.run_record import RunRecord
from mathtune.tracking import log_report, tracked
from tests.record_fixtures import full_solver, full_verifier, verifier_record


def test_key_figures_come_with_interval_and_n():
    figures = key_figures(full_verifier())
    accuracy = full_verifier().links[-1].metrics.accuracy
    assert (figures["accuracy"], figures["accuracy_low"], figures["accuracy_high"], figures["accuracy_n"]) == (
        accuracy.value, accuracy.low, accuracy.high, 2000)
    assert figures["verdict"].startswith("After 3 chunks") and figures["versus_base_p"] < 0.001 and "roc_auc_low" in figures
    assert {"strict", "flexible"} <= set(key_figures(full_solver())) and "strict" not in figures
    assert list(key_figures(verifier_record(chunks=0, base=False))) == ["verdict"]


@pytest.mark.parametrize("place", ["log", "update", "finish"])
def test_what_wandb_does_not_take_fails_no_run(tmp_path, monkeypatch, place):
    """The run there is ended all the same, and a person is told."""
    asked, told = [], []

    def ask(what):
        asked.append(what)
        if what == place:
            raise OSError(28, "No space left on device")

    there = SimpleNamespace(log=lambda _: ask("log"), summary=SimpleNamespace(update=lambda _: ask("update")),
                            finish=lambda: ask("finish"))
    monkeypatch.setattr("wandb.init", lambda **_: there)
    record = verifier_record()
    log_report(Tracking(project="maths"), record, key_figures(record), {}, lambda event, **fields: told.append((event, fields)))
    assert asked[-1] == "finish" and place in asked
    ((event, fields),) = told
    assert event == "notice" and "No space left on device" in fields["text"] and "report itself is written" in fields["text"]


def test_a_training_that_wandb_does_not_take_to_the_end_is_whole(monkeypatch):
    told = []

    def finish():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wandb.init", lambda **_: None)
    monkeypatch.setattr("wandb.finish", finish)
    with tracked(Tracking(project="maths"), "train-chunk[0:96)", lambda event, **fields: told.append((event, fields["text"]))):
        pass
    assert told == [("notice", "W&B did not take all of the training's figures: [Errno 28] No space left on device")]


@pytest.mark.slow
def test_the_report_is_kept_offline_without_a_key(tmp_path, offline_wandb):
    record: RunRecord = verifier_record()
    chart = charts_of(record)[0]
    (tmp_path / "accuracy.png").write_bytes(chart.png())
    log_report(Tracking(project="maths", group="all"), record, key_figures(record), {chart.title: tmp_path / "accuracy.png"},
               lambda *_, **__: None)

    (folder,) = offline_wandb.glob("offline-run-*")
    (picture,) = folder.glob("files/media/images/report/*.png")
    assert picture.read_bytes() == chart.png()
    (log,) = folder.glob("*.wandb")
    kept = log.read_bytes()
    accuracy = record.links[-1].metrics.accuracy
    for needed in ("nyu-verifier report", "maths", "all", "report/accuracy", "accuracy_low", str(accuracy.low),
                   str(accuracy.value)):
        assert needed.encode() in kept, needed
