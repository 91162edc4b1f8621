"""Faults of data, recipes, models and rewards: each planted for real, refused with its name, and nothing lost or wrong."""

import csv
import json
import pickle
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.exceptions import ParameterTypeError

from flows import cli
from flows.pipeline import pipeline
from mathtune import grpo as grpo_module
from mathtune.adapters import adapter_digest, attach
from mathtune.chain import Link, link_key
from mathtune.demo.problems import rows
from mathtune.digests import digest_value
from mathtune.engine import Engine
from mathtune.errors import ChainError, DataError, ModelError, RecipeError, StoreError, TrainingError
from mathtune.files import read_manifest, seal
from mathtune.folders import LocalFolders, open_folders
from mathtune.grpo import refine
from mathtune.inspect_base import inspect_base
from mathtune.jobs import InspectJob
from mathtune.models import load_base, locate_base
from mathtune.ranges import Range
from mathtune.recipe import Model, Sft
from mathtune.recipe_file import parse_recipe
from mathtune.recipe_source import Source
from mathtune.sft import train_chunk
from mathtune.sources import read_source
from mathtune.stages import data as data_stages
from mathtune.stages import pinned_model, train
from mathtune.stages.submit import submit
from mathtune.workspace import Workspace
from tests.folders_fixtures import build
from tests.hub_server import COMMITS, REPO, HubServer
from tests.jobs_fixtures import CPU, grpo_job, sft_job
from tests.test_hub_source import FILES, TRAIN, read  # noqa: F401 (a fixture)

FIRST, SECOND = Range(0, 96), Range(96, 192)


def ignore(event, **fields):
    pass


def dies_at(step):
    def emit(event, **fields):
        if event == "step" and fields["step"] == step:
            raise KeyboardInterrupt

    return emit


def fresh(job):
    return load_base(job.model, job.hardware, Path(job.cache))


@contextmanager
def prepared(recipe, emit=ignore):
    """The stages up to the pool by direct calls, with an engine in this process: ``work``, ``base``, ``raw``, ``parts``."""
    with Workspace(recipe, "only") as work:
        work.engine.run = Engine(emit).run
        base, raw = train.inspect_base(work).value, data_stages.download(work).value
        pool = (raw, "train.parquet") if recipe.task == "solver" else (data_stages.balance(work, raw).value, "balanced.parquet")
        yield SimpleNamespace(work=work, base=base, raw=raw, parts=data_stages.split(work, *pool).value)


def extend(run, wanted) -> Link:
    """Trains a range on top of the chain as a run does, and takes it."""
    train.open_chain(run.work, run.base, run.parts)
    link = train.train_range(run.work, run.base, run.parts, wanted, allow_gap=False).value
    run.work.chain.settle(link, train.chain_pins(run.work, run.base, run.parts), "accepted")
    return link


def untrained_link(run) -> Link:
    """A link of the first range that no engine made: enough to hold recipes against."""
    decided_by = train.sft_decisions(run.work, FIRST, train.range_rows(run.work, run.parts, FIRST, []))
    link = train.new_link(run.base, 1, None, "sft", link_key(None, "sft", decided_by), decided_by, run.work.recipe.lora,
                          {"adapter_digest": "d"}, FIRST)
    run.work.chain.publish(1, link.title, link.key, lambda folder: folder.mkdir() or link)
    run.work.chain.settle(link, train.chain_pins(run.work, run.base, run.parts), "accepted")
    return link


def chains_of(recipe) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(recipe.storage.root, "chains").rglob("*") if path.is_file()}


def write_source(folder: Path, row: int = 0, **edited: str) -> Path:
    """A source of the generator's rows; ``edited`` replaces columns of one of them."""
    table = rows("verifier", 600, 3, "train").drop_columns(["family"]).to_pylist()
    table[row] |= edited
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "rows.parquet")
    return folder / "rows.parquet"


# --- damaged, short, drifted and edited data ---

@pytest.mark.parametrize("damage", ["footer", "page"])
def test_a_damaged_parquet_artifact_is_named_set_aside_and_made_again_with_the_same_bytes(make_recipe, damage):
    with prepared(make_recipe()) as first:
        path = first.parts.path("pool.parquet")
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole[:-9] if damage == "footer" else whole)
    with prepared(make_recipe()) as second:
        assert second.parts.files == first.parts.files and not second.parts.cached and second.raw.cached
        assert len(second.work.artifacts.damaged) == 1
        assert re.search(r"pool\.parquet: .* set aside as split/damaged-.*, made again", second.work.artifacts.damaged[0])


@pytest.mark.slow
def test_what_a_hub_cut_off_or_a_disk_has_damaged_is_fetched_again_whole(read, tmp_path):  # noqa: F811
    with HubServer(FILES, cut_after=20_000) as hub:
        assert "run the same command again" in read(hub.url)["error"]["remedy"]
        assert not (tmp_path / "out" / "train.parquet").exists()
        hub.cut_after = None
        for damage in (lambda data: data, lambda data: data[:50_000], lambda data: data[:50_000] + bytes(200) + data[50_200:]):
            for kept in (tmp_path / "hf" / "hub").rglob("blobs/*"):  # the client's own copies, which it trusts
                kept.write_bytes(damage(kept.read_bytes()) if kept.stat().st_size > 50_000 else kept.read_bytes())
            shutil.rmtree(tmp_path / "hf" / "datasets", ignore_errors=True)
            assert read(hub.url)["facts"]["rows"] == TRAIN
            solutions = pq.read_table(tmp_path / "out" / "train.parquet")["solution"].to_pylist()
            assert solutions == [f"working {row} " * 5 for row in range(TRAIN)]


@pytest.mark.parametrize(("drift", "said"), [
    ({"solution": "worked"}, "no column solution; there are: question, answer, worked, is_correct"),
    ({"question": pa.array([1, 2, 3])}, "column question holds int64, the question must be text"),
    ({"solution": pa.array([["a"]] * 3)}, "column solution holds list<element: string>, the solution must be text"),
    ({"is_correct": pa.array([0.5, 1.0, 0.0])}, "column is_correct: the label '0.5' is neither true nor false")])
def test_a_later_file_of_another_schema_is_named_with_column_and_type(make_recipe, tmp_path, drift, said):
    table = pq.read_table(write_source(tmp_path / "data")).slice(0, 3)
    for name, new in drift.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, new) if isinstance(new, pa.Array) else table.rename_columns({name: new})
    pq.write_table(table, tmp_path / "data" / "rows2.parquet")
    recipe = make_recipe(source={"path": str(tmp_path / "data"), "holdout": 60})
    with pytest.raises(DataError, match=re.escape(said)) as caught, prepared(recipe):
        pass
    assert caught.value.where.startswith(str(tmp_path / "data" / "rows2.parquet"))
    assert not list((tmp_path / "store" / "artifacts").rglob("*.parquet"))


@pytest.mark.slow
def test_a_row_edited_while_a_chunk_is_interrupted_is_refused_and_undone_it_ends_with_the_same_bytes(make_recipe, tmp_path):
    source = {"path": str(write_source(tmp_path / "data")), "holdout": 60}
    recipe = make_recipe(source=source)
    with prepared(make_recipe(source=source, storage={"root": str(tmp_path / "whole")})) as whole:
        expected = [extend(whole, wanted).adapter_digest for wanted in (FIRST, SECOND)]
    with prepared(recipe) as run:
        assert extend(run, FIRST).adapter_digest == expected[0]
        row = pq.read_table(run.parts.path("pool.parquet"))["row_id"][SECOND.start + 9].as_py()
    with pytest.raises(KeyboardInterrupt), prepared(recipe, dies_at(5)) as run:
        extend(run, SECOND)
    before = chains_of(recipe)
    write_source(tmp_path / "data", row, solution="edited\n#### 1")
    with pytest.raises(ChainError) as caught, prepared(recipe) as run:
        extend(run, SECOND)
    assert caught.value.what.endswith("disagrees with what the chain pins: pool") and "chain=NEW" in caught.value.remedy
    assert chains_of(recipe) == before
    write_source(tmp_path / "data")
    seen = []
    with prepared(recipe, lambda event, **fields: seen.append((event, fields.get("step")))) as run:
        assert extend(run, SECOND).adapter_digest == expected[1]
    assert ("resumed", 4) in seen


@pytest.mark.slow
def test_a_row_edited_before_the_chain_has_a_link_begins_anew_with_nothing_of_the_old_mixed_in(make_recipe, tmp_path):
    source = {"path": str(write_source(tmp_path / "data")), "holdout": 60}
    with pytest.raises(KeyboardInterrupt), prepared(make_recipe(source=source), dies_at(5)) as run:
        row = pq.read_table(run.parts.path("pool.parquet"))["row_id"][9].as_py()
        extend(run, FIRST)
    write_source(tmp_path / "data", row, solution="edited\n#### 1")
    seen, digests = [], []
    for root in ("store", "another"):
        recipe = make_recipe(source=source, storage={"root": str(tmp_path / root)})
        with prepared(recipe, lambda event, **fields: seen.append(event)) as run:
            digests.append(extend(run, FIRST).adapter_digest)
    assert digests[0] == digests[1] and "resumed" not in seen


# --- another recipe, base or tokenizer ---

def other_base(tiny_base, tmp_path, file, alter) -> dict:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (folder / file).write_bytes(alter((folder / file).read_bytes()))
    return {"model": {"base": str(folder)}}


def with_last_bit_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(("change", "fields"), [
    (("model.safetensors", with_last_bit_flipped), "base"),
    (("config.json", lambda data: data.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05')), "base"),
    (("tokenizer.json", lambda data: data + b"\n"), "tokenizer"),
    (("chat_template.jinja", lambda data: data + b" "), "tokenizer"),
    ({"model": {"quantization": "none"}}, "quantization"),
    ({"prompt": {"template": "{question} {answer}?"}}, "prompt"), ({"prompt": {"labels": {"true": " 1"}}}, "prompt"),
    ({"lora": {"rank": 4}}, "lora"), ({"lora": {"alpha": 8}}, "lora"), ({"lora": {"targets": ["q_proj"]}}, "lora"),
    ({"source": {"generator": {"rows": 600, "test_rows": 60, "seed": 4}}}, "pool, validation"),
    ({"balance": {"per_class": 200}}, "pool, validation"), ({"validation": {"seed": 1}}, "pool, validation"),
    ({"sft": {"learning_rate": 1e-4}}, "sft.learning_rate"), ({"sft": {"examples_per_step": 8}}, "sft.examples_per_step"),
    ({"model": {"max_length": 100}}, "max_length"), ({"model": {"dtype": "bfloat16"}}, "dtype"),
    ({"lora": {"dropout": 0.2}}, "dropout")])
def test_a_chain_refuses_what_another_recipe_base_or_tokenizer_would_mix_in(recipe_values, tiny_base, tmp_path, change, fields):
    values = recipe_values()
    with prepared(parse_recipe(values)) as run:
        link, before = untrained_link(run), chains_of(run.work.recipe)
        assert extend(run, FIRST) == link  # unchanged, it is served
    for section, changed in (other_base(tiny_base, tmp_path, *change) if isinstance(change, tuple) else change).items():
        values[section] = {**values.get(section, {}), **changed}
    with pytest.raises(ChainError) as caught, prepared(parse_recipe(values)) as run:
        extend(run, FIRST)
    assert caught.value.what.endswith(f": {fields}") and "chain=NEW" in caught.value.remedy
    assert caught.value.exit_status == 2 and chains_of(run.work.recipe) == before
    with prepared(parse_recipe({**values, "chain": "new"})) as run:
        assert train.open_chain(run.work, run.base, run.parts) == []


def test_a_base_whose_branch_moves_stays_at_its_commit_and_then_is_refused(make_recipe, tiny_base, tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
    moved = {**files, "model.safetensors": with_last_bit_flipped(files["model.safetensors"])}
    first, recipe = COMMITS["main"], make_recipe(model={"base": REPO, "max_length": 192})
    with HubServer({first: files, COMMITS["v1"]: moved}) as hub:
        class AsModels(hub._server.RequestHandlerClass):
            def _answer(self):  # the stand-in serves data sets, whose addresses differ
                self.path = self.path.replace("/api/models/", "/api/datasets/").replace(f"/{REPO}/res", f"/datasets/{REPO}/res")
                super()._answer()

        hub._server.RequestHandlerClass = AsModels
        for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("ENDPOINT", hub.url),
                            ("HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        with prepared(recipe) as run:
            monkeypatch.setitem(COMMITS, "main", COMMITS["v1"])  # between the look at the base and the training
            assert locate_base(pinned_model(recipe, run.base), tmp_path).name == run.base["revision"] == first
            untrained_link(run)
        with pytest.raises(ChainError, match="pins: base\n"), prepared(recipe) as run:
            train.open_chain(run.work, run.base, run.parts)
        assert run.base["revision"] == COMMITS["v1"]


# --- labels, empty chunks, long prompts, leaks ---

@given(st.dictionaries(st.integers(0, 29), st.text("xyz?01 TRUEtrue", max_size=6), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_malformed_labels_are_refused_with_their_rows(tmp_path, labels):
    bad = {row: label for row, label in labels.items() if label not in ("True", "true")}
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "answer", "solution", "is_correct"],
                                    *(["q", "1", "s", labels.get(row, "False")] for row in range(30))])
    source = Source(path=str(tmp_path / "rows.csv"), test_path=str(write_source(tmp_path / "data")))
    if not bad:
        assert read_source(source, "verifier", tmp_path)["classes"]["true"] == len(labels)
        return
    with pytest.raises(DataError, match="neither true nor false") as caught:
        read_source(source, "verifier", tmp_path)
    named = ", ".join(map(str, sorted(bad)[:5])) + (" ..." if len(bad) > 5 else "")
    assert caught.value.where == f"{tmp_path / 'rows.csv'}, row{'s' if len(bad) > 1 else ''} {named}"
    assert repr(bad[min(bad)]) in caught.value.what


def test_one_odd_label_among_json_truths_is_the_one_that_is_named(tmp_path):
    row = {"question": "q", "answer": "1", "solution": "s"}
    lines = [json.dumps({**row, "is_correct": label}) for label in (True, False, "maybe")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="the label 'maybe'") as caught:
        read_source(Source(path=str(tmp_path / "rows.jsonl"), holdout=1), "verifier", tmp_path)
    assert caught.value.where.endswith("rows.jsonl, row 2")


def test_a_chunk_that_is_emptied_by_the_limit_is_said_and_not_trained(make_recipe, tiny_base, tmp_path):
    model = {"base": str(tiny_base), "max_length": 20, "overlong": "drop"}
    with prepared(make_recipe("solver", model=model, evaluation={"max_new_tokens": 8})) as run:
        with pytest.raises(DataError, match="no example is left to train\n→ raise model.max_length"):
            extend(run, FIRST)
        assert run.work.chain.pins() is None and not list((tmp_path / "store" / "chains").rglob("adapter"))


def test_prompts_past_the_limit_are_shortened_counted_and_keep_their_labels(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, n=24, sft=Sft(examples_per_step=8, max_steps=1))
    table = pq.read_table(job.rows).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"solution": "1 + 1 = 2 " * 200} for row in table[:10]] + table[10:]), job.rows)
    result = train_chunk(job, fresh(job), ignore)
    assert (result["examples"], result["shortened"], result["dropped"], result["label_tokens"]) == (24, 10, 0, 2 * 24)


@pytest.mark.parametrize("group_by", ["question", "none"])
def test_a_validation_question_planted_in_the_pool_stops_the_chunk(make_recipe, group_by):
    with prepared(make_recipe(validation={"rows": 60, "group_by": group_by})) as run:
        question = pq.read_table(run.parts.path("validation.parquet"))["question"][7].as_py()
        pool = pq.read_table(run.parts.path("pool.parquet"))
        leaky = pool.to_pylist()
        leaky[140]["question"] = f"  {question.upper()}\n"  # another writing of the same question

        def plant(folder):
            shutil.copy(run.parts.path("validation.parquet"), folder)
            pq.write_table(pa.Table.from_pylist(leaky, pool.schema), folder / "pool.parquet")
            return run.parts.facts

        honest, run.parts = run.parts, run.work.artifacts.get_or_build("split", "planted", plant)
        train.range_rows(run.work, run.parts, FIRST, [])  # holds no leak
        if group_by == "none":  # then questions on both sides are what was asked for
            assert train.range_rows(run.work, run.parts, SECOND, []).facts["rows"] == 96
            return
        with pytest.raises(StoreError, match=rf"1 of 192 rows .* row_id {leaky[140]['row_id']}\n→ remove the folder") as caught:
            extend(run, Range(0, 192))
        assert str(run.parts.path("pool.parquet")) == caught.value.where and run.work.chain.pins() is None
        assert train.range_rows(run.work, honest, Range(0, 192), []).facts["rows"] == 192


# --- what could run code or leave its folder ---

class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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


def scoring(altered=lambda table: table):
    """Instead of an engine: made-up scores of each row, then ``altered``."""
    def run(job):
        row_ids = pq.read_table(job.rows)["row_id"].to_pylist()
        table = pa.table({"row_id": row_ids, "prediction": [row % 2 == 0 for row in row_ids]})
        pq.write_table(altered(table), job.output)
        return {}

    return run


def test_texts_that_are_formulas_do_not_reach_the_submission(make_recipe, tmp_path):
    tests = write_source(tmp_path / "tests", 5, question="=cmd|' /C calc'!A0", answer="@SUM(A1)", solution="\t=1+1")
    with prepared(make_recipe(source={"path": str(write_source(tmp_path / "data")), "test_path": str(tests)})) as run:
        link, run.work.engine.run = untrained_link(run), scoring()
        submit(run.work, run.base, run.raw, link)
    lines = (tmp_path / "runs" / "small" / "submission.csv").read_text().splitlines()
    assert lines == ["ID,is_correct", *(f"{row},{row % 2 == 0}" for row in range(600))]


@pytest.mark.parametrize("altered", [lambda table: table.slice(1), lambda table: table.take([1, 0, *range(2, 60)]),
                                     lambda table: table.take([0, *range(59)])], ids=["missing", "swapped", "repeated"])
def test_scores_that_are_not_one_for_each_test_row_are_never_submitted(make_recipe, tmp_path, altered):
    with prepared(make_recipe()) as run:
        link, run.work.engine.run = untrained_link(run), scoring(altered)
        with pytest.raises(StoreError, match="scores.parquet: the scores are not one for each test row"):
            submit(run.work, run.base, run.raw, link)
    assert not list((tmp_path / "runs").rglob("submission*"))


# --- rewards and GRPO's anchor ---

@pytest.fixture(scope="module")
def solver_link(tiny_base, tmp_path_factory) -> Path:
    job = sft_job(tiny_base, tmp_path_factory.mktemp("solver"), "solver", 64, sft=Sft(learning_rate=5e-3, examples_per_step=16))
    train_chunk(job, fresh(job), ignore)
    return Path(job.output)


def reward_failing(at_step=None, gives=None):
    """A reward by length (the tiny base finds no answer, and equal rewards teach nothing) that fails at one step."""
    def correctness_reward(weight):
        calls = []

        def correctness(completions, **columns):
            calls.append(1)
            rewards = [weight * (len(completion) % 7) / 7 for completion in completions]
            return [gives(), *rewards[1:]] if len(calls) == at_step else rewards

        return correctness

    return correctness_reward


@pytest.mark.slow
@pytest.mark.parametrize(("gives", "said"), [
    (lambda: 1 / 0, "the reward correctness raised ZeroDivisionError: division by zero"),
    (lambda: float("nan"), "the reward correctness gave nan, one of 1 of 8"),
    (lambda: None, "the reward correctness gave None, one of 1 of 8")])
def test_a_reward_that_fails_stops_and_a_mended_one_goes_on_to_the_same_bytes_and_the_same_kl(
        tiny_base, solver_link, tmp_path, monkeypatch, gives, said):
    whole, job = (grpo_job(tiny_base, tmp_path / name, solver_link, alpha=8) for name in ("whole", "stopped"))
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    expected = refine(whole, fresh(whole), ignore)
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing(3, gives))
    with pytest.raises(TrainingError, match=rf"{said}\n→ mend the reward; the last checkpoint is kept"):
        refine(job, fresh(job), ignore)
    kept = [read_manifest(folder) for folder in sorted((tmp_path / "stopped" / "checkpoints").glob("step-*"))]
    assert [manifest["step"] for manifest in kept] == [1, 2] and not Path(job.output).exists()
    assert kept[1]["start"] == adapter_digest(solver_link)  # the reference that KL is measured from

    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    seen = []
    result = refine(job, fresh(job), lambda event, **fields: seen.append((event, fields.get("step"))))
    assert ("resumed", 2) in seen and result["adapter_digest"] == expected["adapter_digest"]
    curve, undisturbed = ([(step["kl"], step["loss"], step["reward"]) for step in one["curve"]["steps"]] for one in (
        result, expected))
    assert curve == undisturbed and curve[2][0] > 0


@pytest.mark.slow
def test_grpo_started_again_without_its_state_or_from_another_link_measures_kl_from_its_link(
        tiny_base, solver_link, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_module, "correctness_reward", reward_failing())
    job = grpo_job(tiny_base, tmp_path, solver_link)
    whole = refine(job, fresh(job), ignore)
    moved, seen = job.model_copy(update={"start_adapter": job.output, "output": str(tmp_path / "moved")}), []
    result = refine(moved, fresh(job), lambda event, **fields: seen.append((event, fields.get("text", ""))))
    assert any("made with another start" in text for event, text in seen if event == "notice")
    assert "resumed" not in [event for event, _ in seen] and result["curve"]["steps"][0]["kl"] == pytest.approx(0, abs=1e-5)
    shutil.rmtree(tmp_path / "checkpoints")  # the state is lost: it starts from the link, not from where it was
    again = refine(job, fresh(job), ignore)
    assert again["adapter_digest"] == whole["adapter_digest"] and again["curve"]["steps"][0]["kl"] == pytest.approx(0, abs=1e-5)
