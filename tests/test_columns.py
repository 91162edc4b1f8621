"""The column map: names, alternatives and templates, types, labels, answers from solutions, and what is refused."""

import pyarrow as pa
import pytest

from mathtune.columns import ColumnMap, Piece
from mathtune.errors import DataError
from mathtune.recipe_file import parse_recipe
from mathtune.recipe_source import Columns


def mapped(columns: dict, *, task="verifier", table="train", label_values=None, first=0, untyped=False, **spec):
    piece = Piece(pa.record_batch(columns), "rows.csv", first, untyped)
    return ColumnMap(Columns(**spec), label_values or {}, task, table).apply(piece, first)


def rows(**changed) -> dict:
    plain = {"question": ["q0", "q1"], "answer": ["1", "2"], "solution": ["s0", "s1"], "is_correct": [True, False]}
    return {name: values if isinstance(values, pa.Array) else pa.array(values)
            for name, values in (plain | changed).items() if values is not None}


def test_rows_get_the_schema_and_their_position():
    table = mapped(rows(other=[1, 2]), first=40)
    assert table.column_names == ["row_id", "question", "answer", "solution", "is_correct"]
    assert table.schema.field("question").type == pa.large_string()
    assert table["row_id"].to_pylist() == [40, 41]


def test_names_alternatives_and_templates():
    table = mapped({"problem": ["2 + 2"], "choices": ["a) 4"], "final": [4], "right": [True]},
                   question="{problem}\nOut of {{these}}: {choices}", answer=("expected", "final"), solution=None,
                   label="right")
    assert table.to_pylist() == [{"row_id": 0, "question": "2 + 2\nOut of {these}: a) 4", "answer": "4",
                                  "solution": "", "is_correct": True}]


@pytest.mark.parametrize(("values", "texts"), [
    (pa.array([18, None]), ["18", ""]), (pa.array([18.0, 0.5]), ["18", "0.5"]), (pa.array(["", None]), ["", ""]),
    (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]), (pa.nulls(2), ["", ""]),
])
def test_answers_may_be_numbers_or_empty(values, texts):
    assert mapped(rows(answer=values))["answer"].to_pylist() == texts


@pytest.mark.parametrize("field", ["question", "solution"])
def test_only_an_answer_may_be_a_number(field):
    with pytest.raises(DataError, match=f"column {field} holds int64"):
        mapped(rows(**{field: [1, 2]}))


@pytest.mark.parametrize("blank", [None, "", " \n\u00a0"])
def test_an_empty_question_is_refused_with_its_row(blank):
    with pytest.raises(DataError, match="the question is empty") as caught:
        mapped(rows(question=["q", blank]), first=7)
    assert caught.value.where == "rows.csv, row 8"


def test_many_bad_rows_are_not_all_listed():
    with pytest.raises(DataError) as caught:
        mapped({name: pa.array([""] * 9) for name in ("question", "answer", "solution")}, task="solver")
    assert caught.value.where == "rows.csv, rows 0, 1, 2, 3, 4 ..."


@pytest.mark.parametrize(("values", "mapping"), [
    (["TRUE", "FALSE"], {"TRUE": True, "FALSE": False}), ([1, 0], {"1": True, "0": False}),
    (["yes", "no"], {"yes": True, "no": False}), ([1.0, 0.0], {"1.0": True, "0.0": False}),
])
def test_labels_are_mapped_when_the_recipe_says_so_and_refused_otherwise(values, mapping):
    assert mapped(rows(is_correct=values), label_values=mapping)["is_correct"].to_pylist() == [True, False]
    with pytest.raises(DataError, match="neither true nor false") as caught:
        mapped(rows(is_correct=values), first=3)
    assert caught.value.where == "rows.csv, rows 3, 4"
    assert caught.value.exit_status == 2


def test_the_remedy_for_a_strange_label_can_be_typed():
    with pytest.raises(DataError) as caught:
        mapped(rows(is_correct=["yes", "no"]))
    override = caught.value.remedy.split("'")[1]
    assert override == 'source.label_values={"no": false, "yes": true}'
    import yaml
    values = yaml.safe_load(override.partition("=")[2])
    recipe = parse_recipe({"name": "a", "task": "verifier", "prompt": {"template": "{question}"},
                           "model": {"base": "x"}, "source": {"path": "x", "holdout": 1, "label_values": values}})
    assert mapped(rows(is_correct=["yes", "no"]), label_values=recipe.source.label_values).num_rows == 2


def test_one_strange_label_among_mapped_ones_is_named():
    with pytest.raises(DataError, match="'maybe'") as caught:
        mapped(rows(is_correct=["yes", "maybe"]), label_values={"yes": True, "no": False})
    assert caught.value.where == "rows.csv, row 1"
    assert '"maybe"' in caught.value.remedy and '"yes"' in caught.value.remedy


@pytest.mark.parametrize("values", [[True, None], ["yes", None]])
def test_a_missing_label_is_refused_in_training_rows_and_unknown_in_test_rows(values):
    with pytest.raises(DataError, match="label is missing"):
        mapped(rows(is_correct=values), label_values={"yes": True})
    test = mapped(rows(is_correct=values), label_values={"yes": True}, table="test")
    assert test["is_correct"].to_pylist() == [True, None]


def test_csv_knows_only_text_so_true_and_false_are_read_there_alone():
    assert mapped(rows(is_correct=["True", "false"]), untyped=True)["is_correct"].to_pylist() == [True, False]
    for values, untyped in ((["True", "false"], False), (["TRUE", "1"], True)):
        with pytest.raises(DataError, match="neither true nor false"):
            mapped(rows(is_correct=values), untyped=untyped)


def test_test_rows_need_no_label_and_have_an_id():
    test = mapped(rows(is_correct=None, key=["10", "11"]), table="test", id="key")
    assert test["ID"].to_pylist() == [10, 11] and test["is_correct"].null_count == 2
    assert mapped(rows(is_correct=None), table="test", first=5)["ID"].to_pylist() == [5, 6]


@pytest.mark.parametrize(("ids", "said"), [(["a", "b"], "not whole numbers"), ([1.5, 2], "not whole numbers"),
                                           ([1, None], "ID is missing")])
def test_ids_are_whole_numbers(ids, said):
    with pytest.raises(DataError, match=said):
        mapped(rows(key=ids), table="test", id="key")


GSM8K = ["16 - 3 = 13\n#### 13", "#### 5 is not yet it\nthen\n####  1,234 "]


def test_a_solvers_answer_is_found_at_the_end_of_its_solution():
    for answer in (None, "nowhere"):
        table = mapped({"question": ["a", "b"], "answer": pa.array(GSM8K)}, task="solver", solution="answer",
                       **{"answer": answer})
        assert table["answer"].to_pylist() == ["13", "1,234"]
        assert table["solution"].to_pylist() == GSM8K
        assert table.column_names == ["row_id", "question", "answer", "solution"]


def test_a_solver_needs_an_answer_and_a_solution():
    with pytest.raises(DataError, match="does not end in") as caught:
        mapped({"question": ["a", "b"], "solution": ["#### 1", "no mark"]}, task="solver", first=10)
    assert caught.value.where == "rows.csv, row 11"
    with pytest.raises(DataError, match="answer is empty"):
        mapped(rows(answer=["1", ""]), task="solver")
    with pytest.raises(DataError, match="solution is empty"):
        mapped(rows(solution=["1", None]), task="solver")
    with pytest.raises(DataError, match="learns from solutions"):
        mapped(rows(), task="solver", solution=None)


@pytest.mark.parametrize(("spec", "absent", "remedy"), [
    ({"question": "questoin"}, "questoin", "source.columns.question=question"),
    ({"label": "correct"}, "correct", "source.columns.label=is_correct"),
    ({"answer": ("a", "b")}, "a or b", "source.columns.answer=NAME"),
    ({"solution": "{solution} {steps}"}, "steps", "source.columns.solution=NAME"),
])
def test_a_missing_column_is_named_with_those_that_exist(spec, absent, remedy):
    with pytest.raises(DataError) as caught:
        mapped(rows(), **spec)
    error = caught.value
    assert f"no column {absent};" in error.what and "question, answer, solution, is_correct" in error.what
    assert error.where == "rows.csv" and remedy in error.remedy


def test_only_the_columns_that_are_needed_are_read():
    columns = ColumnMap(Columns(question="{a} {b}", solution=None), {}, "verifier")
    there = ["x", "b", "a", "answer", "solution", "is_correct"]
    assert columns.needed(there, "rows.csv") == ["b", "a", "answer", "is_correct"]
