"""Recipes: every mistake at once with its path, overrides, and a YAML that reads back equal."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mathtune.errors import RecipeError
from mathtune.recipe import Recipe
from mathtune.recipe_file import dump_recipe, load_recipe, parse_recipe
from mathtune.sweep import load_sweep

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SWEEPS = [path for path in FILES if "\ngrid:" in path.read_text()]
RECIPES = [path for path in FILES if path not in SWEEPS]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid_and_reads_back_equal(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_that_ships_is_valid(path):
    assert len({trial.recipe.chain for trial in load_sweep(path).trials}) == 3
    with pytest.raises(RecipeError, match="this is a sweep of recipes"):
        load_recipe(path)


def test_all_mistakes_are_reported_at_once_with_their_paths(recipe_values):
    values = recipe_values(name="../up", sft={"learning_rat": 1e-4, "epochs": -1})
    values["source"]["generator"]["row"] = 5
    del values["model"]["base"]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values)
    text = str(caught.value)
    assert "sft.learning_rat: unknown key; did you mean sft.learning_rate?" in text
    assert "source.generator.row: unknown key; did you mean source.generator.rows?" in text
    assert "model.base: missing" in text
    assert "sft.epochs: " in text and "(got -1)" in text
    assert "name: " in text and "'../up'" in text
    assert "6 mistakes" in text  # the chain takes the run's name, so it is wrong, too


@pytest.mark.parametrize(("override", "mistake"), [
    ("submission.threshold=1.5", "submission.threshold: should be a number from 0 to 1, or fitted (got 1.5)"),
    ("submission.threshold=best", "submission.threshold: should be a number from 0 to 1, or fitted (got 'best')"),
    ("source.columns.question=[1, 2]", "source.columns.question: should be a text, or a list (got [1, 2])"),
    ("source.columns.answer=3", "source.columns.answer: should be a text, or a list (got 3)"),
    ("lora.rnk=3", "lora.rnk: unknown key; did you mean lora.rank?"),
    ("lora.targets=[1]", "lora.targets.0: Input should be a valid string (got 1)"),
    ("evaluation.reject_p=2", "evaluation.reject_p: Input should be less than 1 (got 2)"),
    ("nam=3", "nam: unknown key; did you mean name?"),
])
def test_a_mistake_is_told_once_under_its_key(tmp_path, recipe_values, override, mistake):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values()))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert caught.value.what == f"1 mistake in the recipe\n  {mistake}"


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "", " x", "a\0b", "/abs", "x" * 65])
def test_names_that_could_leave_the_folder_are_refused(recipe_values, name):
    with pytest.raises(RecipeError, match="name: "):
        parse_recipe(recipe_values(name=name, chain="fine"))


@pytest.mark.parametrize(("task", "changes", "message"), [
    ("verifier", {"grpo": {"prompts": 8, "max_steps": 1}}, "grpo belongs to a solver"),
    ("verifier", {"evaluation": {"samples": 4}}, "evaluation.samples belongs to a solver"),
    ("solver", {"balance": {"per_class": 5}}, "belong to a verifier"),
    ("solver", {"prompt": {"template": "{question} {answer}"}}, "must not hold the {answer}"),
    ("solver", {"prompt": {"template": "{question} {solution}"}}, "must not hold the {solution}"),
    ("solver", {"prompt": {"template": "{question} {answer!s}"}}, "takes no conversion or format"),
    ("solver", {"evaluation": {"max_new_tokens": 192}}, "leaves no room for a prompt"),
    ("verifier", {"prompt": {"template": "{answer}"}}, "never uses {question}"),
    ("verifier", {"prompt": {"template": "{question} {x}"}}, "unknown field {x}"),
    ("verifier", {"chunks": {"start": 5, "end": 5}}, "start (5) must be below end (5)"),
    ("verifier", {"source": {"path": "a", "hub": "b/c", "holdout": 1}}, "exactly one of hub, path and generator"),
    ("verifier", {"source": {"path": "a"}}, "exactly one of test_split, test_path and holdout"),
    ("verifier", {"sft": {"keep_best": True}}, "keep_best needs evaluate_every"),
])
def test_contradictions_are_refused(recipe_values, task, changes, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe_values(task, **changes))
    assert message in str(caught.value)


def test_overrides_reach_into_sections_and_read_values_as_yaml(tmp_path, recipe_values):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values()))
    recipe = load_recipe(path, ["sft.learning_rate=1e-4", "lora.targets=[q_proj, v_proj]", "tracking.project=maths",
                                "sft.max_steps=3", "evaluation.rows=null"])
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert recipe.tracking.project == "maths"
    assert recipe.sft.max_steps == 3
    with pytest.raises(RecipeError, match="not key=value"):
        load_recipe(path, ["sft.epochs"])
    with pytest.raises(RecipeError, match="holds a value, not a section"):
        load_recipe(path, ["name.first=x"])


@pytest.mark.parametrize("secret", ["https://user:hunter2@hub.example/x", "s3://AKIA1:hunter2@bucket/x", "hf_" + "hunter2" * 5])
def test_a_password_or_token_is_refused_and_not_repeated(tmp_path, recipe_values, secret):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(recipe_values(chunks={"size": 9}, model={"base": secret})))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(recipe_values()))
    for path, overrides in (("a.yaml", ()), ("b.yaml", (f"model.base={secret}",))):
        with pytest.raises(RecipeError, match="a password or token in model.base") as caught:
            load_recipe(tmp_path / path, overrides)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1", "\t"])
def test_what_is_no_recipe_is_refused_with_the_file(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_a_recipe_cannot_be_changed(make_recipe):
    recipe = make_recipe()
    with pytest.raises(ValidationError):
        recipe.sft.learning_rate = 1.0


def test_defaults_say_what_a_task_needs(make_recipe):
    assert make_recipe("verifier").balance.per_class == 400_000
    assert make_recipe("verifier").submission.id_column == "ID"
    assert make_recipe("solver").balance is None and make_recipe("solver").submission is None
    assert make_recipe().chain == make_recipe().name
    assert Recipe.model_json_schema()["properties"]["sft"]  # Prefect makes its form of this
