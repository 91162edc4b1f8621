"""What could run code, leave its folder or reach the submission: each planted for real, refused, and never run or written."""

import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.exceptions import ParameterTypeError

from flows import cli
from flows.pipeline import pipeline
from mathtune.adapters import attach
from mathtune.digests import digest_value
from mathtune.errors import DataError, ModelError, RecipeError, StoreError
from mathtune.files import seal
from mathtune.folders import LocalFolders, open_folders
from mathtune.inspect_base import inspect_base
from mathtune.jobs import InspectJob
from mathtune.models import load_base
from mathtune.recipe import Model
from mathtune.recipe_file import parse_recipe
from mathtune.recipe_source import Source
from mathtune.sft import train_chunk
from mathtune.sources import read_source
from mathtune.stages.submit import submit
from tests.faults_fixtures import dies_at, ignore, prepared, scoring, untrained_link, write_source
from tests.folders_fixtures import build
from tests.jobs_fixtures import CPU, sft_job
from tests.training_fixtures import fresh


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


# --- what could run code or leave its folder ---

def test_pickled_weights_and_code_of_a_base_are_refused_and_never_run(tiny_base, tmp_path, monkeypatch):
    canary, job = tmp_path / "canary", sft_job(tiny_base, tmp_path / "job")
    pickled, coded = (Path(shutil.copytree(tiny_base, tmp_path / name)) for name in ("pickled", "coded"))
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    (coded / "own.py").write_text(f"open({str(canary)!r}, 'w')\n"
                                  "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (coded / "config.json").write_text(json.dumps(json.loads((coded / "config.json").read_text()) | own))
    monkeypatch.setattr("builtins.input", lambda prompt: "y")  # transformers asks, unless it is told no beforehand
    for folder, said in ((pickled, "pickled weights are not loaded"), (coded, "code of its own, which is never run")):
        model = Model(base=str(folder))
        look = InspectJob(task="verifier", model=model, prompt=job.prompt, hardware=CPU, cache=str(tmp_path))
        for use in (lambda model=model: load_base(model, CPU, tmp_path), lambda look=look: inspect_base(look)):
            with pytest.raises(ModelError, match=said) as caught:
                use()
            assert caught.value.where == str(folder)
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):  # peft alone would fall back to the pickle
        attach(fresh(job).model, job.lora, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_runs_code_is_not_run_though_the_checkpoints_manifest_vouches_for_it(tiny_base, tmp_path, file):
    job = sft_job(tiny_base, tmp_path, n=48)
    with pytest.raises(KeyboardInterrupt):
        train_chunk(job, fresh(job), dies_at(3))
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    (checkpoint / file).write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=2))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, {name: value for name, value in manifest.items() if name not in ("files", "digest")})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train_chunk(job, fresh(job), ignore)
    assert not (tmp_path / "canary").exists() and not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\0b", "..", ".hidden"])
def test_a_chain_or_execution_whose_name_leaves_its_folder_is_refused(recipe_values, tmp_path, name):
    with pytest.raises(RecipeError, match="chain: letters, digits"):
        parse_recipe(recipe_values(chain=name))
    with pytest.raises(RecipeError, match="letters, digits"):
        cli.chain(name, root=str(tmp_path))
    with pytest.raises(ParameterTypeError, match="execution: Value error, letters, digits"):
        pipeline.validate_parameters({"recipe": recipe_values(), "execution": name})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["inner/more.bin", "inner"])
def test_a_symbolic_link_inside_a_published_folder_is_refused_though_its_bytes_are_right(tmp_path, link):
    folders = LocalFolders(tmp_path / "folders")
    folders.publish("a/x", build, {"stage": "s"})
    inside = folders.path("a/x") / link
    inside.rename(tmp_path / "elsewhere")
    inside.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="a symbolic link") as caught:
        folders.fetch("a/x")
    assert caught.value.where.endswith("inner/more.bin")


@pytest.mark.parametrize("name", ["../../escaped", "{}/escaped", "inner/../../../escaped", "a\0b"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused_and_nothing_is_written_there(s3_url, tmp_path, name):
    folders, name = open_folders(s3_url, tmp_path / "copies"), name.format(tmp_path)
    folders.publish("a/x", build, {"stage": "s"})
    manifest = json.loads(folders.read("a/x/manifest.json"))
    manifest["files"][name] = manifest["files"]["rows.bin"]
    manifest["digest"] = digest_value({key: value for key, value in manifest.items() if key != "digest"})
    folders.write("a/x/manifest.json", json.dumps(manifest))
    with pytest.raises(StoreError, match="names a file outside its folder"):
        open_folders(s3_url, tmp_path / "another machine").fetch("a/x")
    assert not list(tmp_path.rglob("escaped"))


# --- the submission ---

@pytest.mark.parametrize("ids", [["=1+1", "2"], ["@SUM(A1)", "2"], ["\t1", "2"], ["+1", "2"], ["1\r", "2"], ["007", "8"],
                                 ["0x10", "17"], ["=cmd|' /C calc'!A0", "2"], ["1", "3"], ["2", "1"], ["1", "1"], ["1", ""]])
def test_ids_that_are_formulas_repeated_missing_or_would_be_read_back_otherwise_are_refused(tmp_path, ids):
    table = {"question": ["=q", "@q"], "answer": ["=1", "\t1"], "solution": ["s", "s"], "key": ids}
    pq.write_table(pa.table(table), tmp_path / "tests.parquet")
    source = Source(path=str(write_source(tmp_path / "data")), test_path=str(tmp_path / "tests.parquet"), columns={"id": "key"})
    with pytest.raises(DataError) as caught:
        read_source(source, "verifier", tmp_path)
    assert "key" in caught.value.where + caught.value.what and "source.columns.id" in caught.value.remedy


def test_texts_that_are_formulas_do_not_reach_the_submission(make_recipe, tmp_path):
    tests = write_source(tmp_path / "tests", 5, question="=cmd|' /C calc'!A0", answer="@SUM(A1)", solution="\t=1+1")
    with prepared(make_recipe(source={"path": str(write_source(tmp_path / "data")), "test_path": str(tests)})) as run:
        link, run.work.engine.run = untrained_link(run), scoring()
        submit(run.work, run.base, run.raw, run.parts, link)
    lines = (tmp_path / "runs" / "small" / "submission.csv").read_text().splitlines()
    assert lines == ["ID,is_correct", *(f"{row},{row % 2 == 0}" for row in range(600))]


@pytest.mark.parametrize("altered", [lambda table: table.slice(1), lambda table: table.take([1, 0, *range(2, 60)]),
                                     lambda table: table.take([0, *range(59)])], ids=["missing", "swapped", "repeated"])
def test_scores_that_are_not_one_for_each_test_row_are_never_submitted(make_recipe, tmp_path, altered):
    with prepared(make_recipe()) as run:
        link, run.work.engine.run = untrained_link(run), scoring(altered=altered)
        with pytest.raises(StoreError, match="scores.parquet: the scores are not one for each test row"):
            submit(run.work, run.base, run.raw, run.parts, link)
    assert not list((tmp_path / "runs").rglob("submission*"))
