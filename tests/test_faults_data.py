"""Faults of data, recipes and labels: each planted for real, refused with its name, and nothing lost or wrong."""

import csv
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathtune.errors import ChainError, DataError, StoreError
from mathtune.models import locate_base
from mathtune.ranges import Range
from mathtune.recipe_file import parse_recipe
from mathtune.recipe_source import Source
from mathtune.sources import read_source
from mathtune.stages import pinned_model, train
from mathtune.tokenise import tokenise_rows
from tests.faults_fixtures import FIRST, SECOND, dies_at, extend, prepared, untrained_link, write_source
from tests.hub_server import COMMITS, REPO, HubServer
from tests.jobs_fixtures import tokenise_job
from tests.test_hub_source import FILES, TRAIN, read  # noqa: F401 (a fixture)


def chains_of(recipe) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(recipe.storage.root, "chains").rglob("*") if path.is_file()}


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
    ({"model": {"quantization": "none"}}, "quantization (nf4 there, none here)"),
    ({"prompt": {"template": "{question} {answer}?"}}, "prompt"), ({"prompt": {"labels": {"true": " 1"}}}, "prompt"),
    ({"lora": {"rank": 4}}, "lora (rank 8 there, rank 4 here)"),
    ({"lora": {"alpha": 8}}, "lora (alpha 16 there, alpha 8 here)"),
    ({"lora": {"targets": ["q_proj"]}},
     "lora (down_proj, gate_proj, k_proj, o_proj, up_proj, v_proj there, nothing more here)"),
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
    job = tokenise_job(tiny_base, tmp_path, n=24)
    table = pq.read_table(job.rows).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"solution": "1 + 1 = 2 " * 200} for row in table[:10]] + table[10:]), job.rows)
    counted = tokenise_rows(job)
    assert (counted["examples"], counted["shortened"], counted["dropped"], counted["label_tokens"]) == (24, 10, 0, 2 * 24)


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
