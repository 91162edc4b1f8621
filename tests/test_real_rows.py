"""The pipeline on rows that real models wrote for GSM8K, from the recipe that ships."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.pipeline import pipeline
from mathtune.questions import normalise_question
from mathtune.recipe_file import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "gsm8k_solutions.yaml"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_real_rows_end_in_a_submission_and_a_report(real_data, tiny_base, tmp_path):
    recipe = load_recipe(RECIPE, [
        f"source.path={real_data / 'model_solutions.parquet'}", f"model.base={tiny_base}", "chunks.size=64", "chunks.end=64",
        "sft.learning_rate=1e-4", "evaluation.rows=60", "evaluation.words_rows=0", "hardware.device=cpu",
        f"storage.root={tmp_path / 'store'}", f"storage.runs={tmp_path / 'runs'}"])
    record = pipeline(recipe, execution="only")["record"]
    download = record["data"]["download"]
    assert download["rows"] + download["test_rows"] + download["set_aside"] == 3676
    assert record["data"]["balance"]["kept"] == {"true": 1200, "false": 1200}
    assert record["links"][0]["facts"]["shortened"] > 0  # real solutions are longer than this tokenizer's 512 tokens
    folder = tmp_path / "runs" / "gsm8k-solutions"
    assert len((folder / "submission.csv").read_text().splitlines()) == 401
    assert (folder / "report.html").stat().st_size > 50_000
    split = next((tmp_path / "store" / "artifacts" / "split").iterdir())
    raw = next((tmp_path / "store" / "artifacts" / "download").iterdir())
    sides = [{normalise_question(question) for question in pq.read_table(file, columns=["question"])["question"].to_pylist()}
             for file in (split / "validation.parquet", split / "pool.parquet", raw / "test.parquet")]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
