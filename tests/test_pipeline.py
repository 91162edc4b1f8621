"""The flows on a tiny base, through Prefect: everything once, everything served the second time, chains that hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows.parts import evaluate_chain, submit_link, train_range
from flows.pipeline import pipeline
from mathtune.chain import Chain
from mathtune.comparison import compare_scores, read_scored
from mathtune.engine_client import EngineClient
from mathtune.errors import ChainError, RangeError, RejectedLink, TakenOver
from mathtune.folders import LocalFolders
from mathtune.recipe import Chunks, Storage
from mathtune.run_record import RunRecord
from mathtune.stages import judge as judging

DEMO_TEMPLATE = "{question}\n{solution}\nAnswer: {answer}\nRight?\n"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "one_engine")]


def stages(recipe, execution):
    """``{title: state}`` of the finished stages of an execution."""
    lines = (Path(recipe.storage.runs) / recipe.name / "executions" / execution / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {event["title"]: event["state"] for event in events if event["event"] == "stage" and event["state"] != "started"}


@pytest.fixture
def recipe(make_recipe):
    """Trained so gently that the untrained base's own variety of answers stays: submit refuses a single class."""
    values = make_recipe()
    return values.model_copy(update={"sft": values.sft.model_copy(update={"learning_rate": 1e-4})})


def test_a_verifier_from_source_to_report_and_again_from_what_is_there(recipe):
    result = pipeline(recipe, execution="first")
    first = stages(recipe, "first")
    assert list(first) == ["check-base", "download", "balance", "split", "leaks", "evaluate base", "train-chunk[0:96)",
                           "evaluate sft[0:96)", "judge sft[0:96)", "train-chunk[96:192)", "evaluate sft[96:192)",
                           "judge sft[96:192)", "submit", "probe sft[0:96)", "probe sft[96:192)", "report"]
    assert set(first.values()) == {"done"}
    folder = Path(recipe.storage.runs) / "small"
    for name in ("recipe.yaml", "manifest.json", "metrics.json", "predictions.parquet", "errors.jsonl", "submission.csv",
                 "submission.json", "report.html", "ranges/0-96/metrics.json", "ranges/96-192/submission.csv"):
        assert (folder / name).is_file(), name
    before = {name: (folder / name).read_bytes() for name in ("submission.csv", "predictions.parquet", "report.html")}

    pipeline(recipe, execution="second")
    assert set(stages(recipe, "second").values()) - {"done"} == {"cached"}
    assert [title for title, state in stages(recipe, "second").items() if state == "done"] == ["check-base"]
    assert before == {name: (folder / name).read_bytes() for name in before}

    record = RunRecord.model_validate_json((folder / "metrics.json").read_text())
    assert [link.served for link in record.links] == [True, True]
    assert record.links[1].metrics.rows == 60 and record.base.rows == 60
    assert record.links[0].metrics.words.rows == 20
    assert [[one.n for one in row] for row in record.forgetting.accuracy] == [[96], [96, 96]]  # all of chunks so short
    assert 0 < record.links[0].trainable < 0.5 * record.links[0].parameters and record.links[1].peak_rss_gib > 0.1
    with_base = compare_scores(read_scored("small:base", folder.parent), read_scored("small", folder.parent))
    assert with_base.versus == record.versus_base and with_base.second.accuracy == record.links[1].metrics.accuracy
    assert result["record"]["links"][1]["adapter_digest"] == record.links[1].adapter_digest

    csv = pd.read_csv(folder / "submission.csv")
    assert list(csv.columns) == ["ID", "is_correct"] and csv["ID"].tolist() == list(range(60))
    side = json.loads((folder / "submission.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert side["adapter_digest"] == manifest["links"][1]["adapter"] == record.links[1].adapter_digest
    predictions = pq.read_table(folder / "predictions.parquet")
    assert predictions["prediction"].to_pylist() == csv["is_correct"].tolist()


def test_what_changes_decides_what_is_computed_again(recipe):
    pipeline(recipe, execution="first")
    hardware = recipe.hardware.model_copy(update={"pack_tokens": 512})
    pipeline(recipe.model_copy(update={"hardware": hardware}), execution="hardware")
    assert stages(recipe, "hardware")["train-chunk[96:192)"] == "cached"

    evaluation = recipe.evaluation.model_copy(update={"words_rows": 5})
    pipeline(recipe.model_copy(update={"evaluation": evaluation}), execution="words")
    seen = stages(recipe, "words")
    assert (seen["split"], seen["train-chunk[0:96)"], seen["evaluate base"]) == ("cached", "cached", "done")

    sft = recipe.sft.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(ChainError, match="trained with another recipe: sft.learning_rate") as caught:
        pipeline(recipe.model_copy(update={"sft": sft}), execution="sft")
    assert "chain=NEW" in caught.value.remedy

    validation = recipe.validation.model_copy(update={"seed": 1})
    with pytest.raises(ChainError, match="pins: pool, validation"):
        pipeline(recipe.model_copy(update={"validation": validation}), execution="validation")
    lora = recipe.lora.model_copy(update={"rank": 4})
    with pytest.raises(ChainError, match="pins: lora"):
        pipeline(recipe.model_copy(update={"lora": lora}), execution="lora")


def test_ranges_are_trained_one_after_the_other(recipe):
    with pytest.raises(ChainError, match="has no link yet"):
        submit_link(recipe, execution="none")
    train_range(recipe, start=0, end=64, execution="one")
    train_range(recipe, next=32, execution="two")
    assert stages(recipe, "two")["train-chunk[64:96)"] == "done"
    assert stages(recipe, "two")["evaluate sft[0:64)"] == "cached"
    with pytest.raises(RangeError, match=r"\[80:112\) overlaps \[64:96\)") as caught:
        train_range(recipe, start=80, end=112, execution="three")
    assert "--start 96 --end 128" in caught.value.remedy
    with pytest.raises(RangeError, match=r"skips rows \[96:100\)"):
        train_range(recipe, start=100, end=120, execution="four")
    with pytest.raises(RangeError, match="beyond the pool"):
        train_range(recipe, start=96, end=100_000, execution="five")
    train_range(recipe, start=100, end=132, allow_gap=True, execution="six")
    result = evaluate_chain(recipe, execution="seven")
    assert [(link["start"], link["end"]) for link in result["record"]["links"]] == [(0, 64), (64, 96), (100, 132)]
    submit_link(recipe, link=2, execution="eight")
    side = json.loads((Path(recipe.storage.runs) / "small" / "submission.json").read_text())
    assert side["link"] == 2 and side["range"] == "[64:96)"


@pytest.fixture
def worse(make_recipe):
    """The demo's base, on which a chunk teaches enough to be unlearned."""
    return make_recipe("verifier", model={"base": "builtin:demo", "max_length": 256}, validation={"rows": 100},
                         source={"generator": {"rows": 3000, "test_rows": 20, "seed": 1}}, chunks={"size": 640, "end": 1280},
                         evaluation={"words_rows": 0, "batch_size": 100}, lora={"rank": 16, "alpha": 32},
                         prompt={"template": DEMO_TEMPLATE}, sft={"learning_rate": 1e-3, "examples_per_step": 32, "epochs": 4})


def test_a_link_worse_than_its_parent_is_rejected_and_waits_for_a_persons_word(worse):
    good = train_range(worse, start=0, end=640, execution="good")["record"]["links"][0]
    assert good["metrics"]["accuracy"]["value"] > 0.7
    spoilt = worse.model_copy(update={"sft": worse.sft.model_copy(update={"learning_rate": 1.0, "max_steps": 4})})
    for execution in ("rejected", "again"):
        with pytest.raises(RejectedLink, match=r"sft\[640:1280\) is worse than its parent: -\d+\.\d points") as caught:
            train_range(spoilt, start=640, end=1280, execution=execution)
        assert "--accept" in caught.value.remedy and "--skip" in caught.value.remedy
    assert stages(worse, "rejected")["train-chunk[640:1280)"] == "done"
    assert stages(worse, "again")["train-chunk[640:1280)"] == "cached"  # it is there, and not trained again
    record = json.loads((Path(worse.storage.runs) / "small" / "metrics.json").read_text())
    assert [link["number"] for link in record["links"]] == [1]
    assert [(one["title"], one["verdict"]) for one in record["left_out"]] == [("sft[640:1280)", "rejected")]

    train_range(spoilt, start=640, end=1280, decision="skip", execution="skip")
    gentle = worse.model_copy(update={"sft": worse.sft.model_copy(update={"learning_rate": 1e-5, "max_steps": 2})})
    record = train_range(gentle, next=64, execution="after")["record"]
    assert [(link["number"], link["start"], link["end"]) for link in record["links"]] == [(1, 0, 640), (3, 1280, 1344)]
    assert record["left_out"][0]["verdict"] == "skipped" and record["links"][1]["versus_parent"] is not None

    with pytest.raises(RejectedLink):
        train_range(spoilt, next=64, execution="worse")
    record = train_range(gentle, next=64, execution="another-recipe")["record"]
    assert [link["number"] for link in record["links"]] == [1, 3, 4] and len(record["left_out"]) == 1
    with pytest.raises(ChainError, match="no rejected link waits for a decision"):
        train_range(gentle, next=64, decision="accept", execution="nothing")

    with pytest.raises(RejectedLink):
        train_range(spoilt, next=64, execution="worse-again")
    record = train_range(spoilt, next=64, decision="accept", execution="accepted")["record"]
    assert [link["verdict"] for link in record["links"]] == ["accepted"] * 3 + ["accepted by a person"]
    assert "although it was rejected" in (Path(worse.storage.runs) / "small" / "report.html").read_text()


def test_a_chain_whose_only_link_is_skipped_says_so_and_leaves_a_report(recipe, monkeypatch):
    monkeypatch.setattr(judging, "is_worse", lambda versus, reject_p: True)
    one = recipe.model_copy(update={"chunks": Chunks(size=96, end=96)})
    with pytest.raises(RejectedLink):
        pipeline(one, execution="rejected")
    report = Path(recipe.storage.runs) / "small" / "report.html"
    assert "sft[0:96) is worse than its parent and waits for a person&#39;s decision" in report.read_text()
    with pytest.raises(ChainError, match="every link of the chain was skipped"):
        pipeline(one, decision="skip", execution="skipped")
    record = json.loads((report.parent / "metrics.json").read_text())
    assert record["links"] == [] and record["left_out"][0]["verdict"] == "skipped"


def test_a_persons_decision_is_about_the_rejected_link_alone(recipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(judging, "is_worse", lambda versus, reject_p: True)
        with pytest.raises(RejectedLink):
            pipeline(recipe, execution="rejected")
    record = pipeline(recipe, decision="skip", execution="skipped")["record"]
    assert [(link["number"], link["verdict"]) for link in record["links"]] == [(2, "accepted")]
    assert [one["title"] for one in record["left_out"]] == ["sft[0:96)"]


def test_who_lost_its_lease_while_it_trained_publishes_nothing(recipe, monkeypatch):
    """Through the stage itself, with an engine that is overtaken at its work."""
    run = EngineClient.run

    def overtaken(self, job):
        result = run(self, job)
        if job.kind == "sft":
            leases = LocalFolders(Path(recipe.storage.root) / "chains")
            mine = max(leases.texts("small/leases"))
            leases.create_once(f"small/leases/{int(mine[-8:]) + 1:08d}", json.dumps({"host": "other", "token": "x", "pid": 1}))
        return result

    monkeypatch.setattr(EngineClient, "run", overtaken)
    with pytest.raises(TakenOver, match="another worker took over"):
        train_range(recipe, start=0, end=32, execution="asleep")
    chains = LocalFolders(Path(recipe.storage.root) / "chains")
    assert chains.children("small/links") == [] and Chain(chains, "small").links() == []


def test_everything_in_an_object_store_and_again_from_another_machine(recipe, s3_url, tmp_path):
    """Artifacts, links and checkpoints on S3; a second machine, with nothing of its own, is served all of it."""
    def on(machine):
        return recipe.model_copy(update={"storage": Storage(
            root=s3_url, cache=str(tmp_path / machine), runs=str(tmp_path / machine / "runs"))})

    pipeline(on("one"), execution="first")
    pipeline(on("two"), execution="second")
    seen = stages(on("two"), "second")
    assert [title for title, state in seen.items() if state == "done"] == ["check-base", "submit", "report"]
    for name in ("submission.csv", "predictions.parquet"):
        one, two = (tmp_path / machine / "runs" / "small" / name for machine in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_replayed_rows_come_from_earlier_ranges(recipe):
    chunks = recipe.chunks.model_copy(update={"replay": 0.5})
    record = pipeline(recipe.model_copy(update={"chunks": chunks}), execution="replay")["record"]
    assert [link["facts"]["examples"] for link in record["links"]] == [96, 96 + 48]


def test_a_solver_by_sft_and_grpo(make_recipe):
    recipe = make_recipe("solver", chunks={"size": 96, "end": 96}, evaluation={"max_new_tokens": 16, "batch_size": 60},
                         grpo={"prompts": 8, "max_steps": 2, "generations": 2, "prompts_per_step": 2,
                               "max_new_tokens": 12, "learning_rate": 1e-4, "alpha": 8})
    record = pipeline(recipe, execution="first")["record"]
    assert [link["kind"] for link in record["links"]] == ["sft", "grpo"]
    assert record["links"][1]["training"]["steps"][0]["reward"] is not None
    folder = Path(recipe.storage.runs) / "small"
    assert (folder / "predictions.parquet").is_file() and not (folder / "submission.csv").exists()
    assert {"completion", "given", "finished", "ID"} <= set(pq.read_schema(folder / "predictions.parquet").names)
    pipeline(recipe, execution="second")
    assert stages(recipe, "second")["grpo"] == stages(recipe, "second")["prompt-leaks"] == "cached"
    assert [(pair["first"], pair["second"]) for pair in record["leaks"]] == [
        ("training pool", "validation"), ("training pool", "test"), ("validation", "test"),
        ("GRPO prompts", "validation"), ("GRPO prompts", "test")]
    with pytest.raises(ChainError, match="ends in a GRPO link"):
        train_range(recipe, next=16, execution="third")


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(recipe_values, tmp_path):
    """SIGKILL of control plane and engine in the middle of a chunk, then the same command."""
    import yaml

    def values(name):
        made = recipe_values(name=name)
        made["sft"] |= {"learning_rate": 1e-4, "epochs": 6}
        made["storage"] = {"root": str(tmp_path / name), "runs": str(tmp_path / "runs")}
        return made

    code = "import sys, flows.pipeline; from mathtune.recipe_file import load_recipe\n" \
           "flows.pipeline.pipeline(load_recipe(sys.argv[1]), execution=sys.argv[2])\n" \
           "assert 'torch' not in sys.modules, 'the control plane loaded torch'\n"

    def start(name, execution):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values(name)))
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"{name}.yaml"), execution], env=_environment())

    assert start("whole", "only").wait() == 0
    killed = start("killed", "first")
    events = tmp_path / "runs" / "killed" / "executions" / "first" / "events.jsonl"
    while not (events.is_file() and '"step": 9,' in events.read_text()):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert start("killed", "second").wait() == 0
    text = (events.parents[1] / "second" / "events.jsonl").read_text()
    assert '"event": "resumed"' in text
    for name in ("submission.csv", "predictions.parquet"):
        assert (tmp_path / "runs" / "killed" / name).read_bytes() == (tmp_path / "runs" / "whole" / name).read_bytes()


def _environment():
    from prefect.settings import PREFECT_API_URL

    return {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
