"""What a run of a deployment does besides its work: secrets from blocks, rows asked for, no credentials in its parameters."""

from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import jsonschema
import pytest
from prefect.blocks.system import Secret
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows import deployed
from mathtune.errors import MachineError
from mathtune.recipe import Recipe
from mathtune.recipe_source import Source
from tasks import deployment

KEY, KEY_ID = "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"
SECRET_URL = "s3://AKIA1:hunter2@bucket/x"


@pytest.fixture
def blocks(monkeypatch):
    """Secret blocks by name, on no server."""
    blocks: dict[str, Secret] = {}

    def load(name):
        if name not in blocks:
            raise ValueError(f"Unable to find block document named {name}")
        return blocks[name]

    monkeypatch.setattr(Secret, "load", load)
    return blocks


@pytest.fixture
def environ(monkeypatch):
    """An environment without secrets."""
    environ: dict[str, str] = {}
    monkeypatch.setattr(deployment, "os", SimpleNamespace(environ=environ))
    return environ


def test_tokens_come_from_blocks_without_the_line_end_and_the_environments_own_stay(blocks, environ):
    environ["WANDB_API_KEY"] = "mine"
    blocks |= {"hf-token": Secret(value="hf_token\n"), "wandb-api-key": Secret(value="theirs"),
               "aws-access-key-id": Secret(value="123456"), "aws-secret-access-key": Secret(value="key")}
    deployment.load_secrets()
    assert environ == {"WANDB_API_KEY": "mine", "HF_TOKEN": "hf_token", KEY_ID: "123456", KEY: "key"}


def test_an_aws_identity_is_never_of_two(blocks, environ):
    environ[KEY_ID] = "mine"  # its key is in ~/.aws, say
    blocks |= {"aws-access-key-id": Secret(value="theirs"), "aws-secret-access-key": Secret(value="theirs")}
    deployment.load_secrets()
    assert environ == {KEY_ID: "mine"}
    environ.clear()
    del blocks["aws-secret-access-key"]
    with pytest.raises(MachineError, match="Secret block aws-secret-access-key: there is no such block"):
        deployment.load_secrets()
    assert environ == {}


@pytest.mark.parametrize("held", [{"token": "hunter2"}, ["hunter2"], " \n"])
def test_a_block_that_holds_no_token_is_named_and_not_repeated(blocks, environ, held):
    blocks["hf-token"] = Secret(value=held)
    with pytest.raises(MachineError, match="Secret block hf-token: it holds no token") as caught:
        deployment.load_secrets()
    assert "hunter2" not in str(caught.value) and environ == {}


@pytest.mark.parametrize(("asked", "default", "rows"), [
    ((0, 96, 0), {}, (0, 96, None)),
    ((0, 0, 96), {}, (None, None, 96)),
    ((0, 0, 1200), {"next": 1200}, (None, None, 1200)),
    ((96, 192, 1200), {"next": 1200}, (96, 192, None)),  # a range of a nightly deployment, whose own next is not asked for
    ((96, 192, 96), {"next": 1200}, (96, 192, 96)),  # contradicts itself: refused by the flow
    ((96, 0, 0), {}, (96, None, None)),
    ((0, 0, 0), {}, (0, None, None)),
])
def test_a_range_that_is_asked_for_wins_over_the_rows_that_a_deployment_takes_by_itself(monkeypatch, asked, default, rows):
    monkeypatch.setattr(deployed, "default_parameters", lambda: default)
    assert deployed.asked_rows(*asked) == rows
    start, end, next = asked
    monkeypatch.setattr(deployed, "flow_run", SimpleNamespace(parameters={
        "recipe": "demo", "start": start, "end": end, "next": next}))
    assert deployed.range_name() == (f"demo next {rows[2]}" if rows[2] else f"demo [{start}:{end})")


def test_a_run_is_named_or_not_but_never_held_up(monkeypatch):
    @contextmanager
    def away():
        raise httpx.ConnectError("refused")
        yield

    monkeypatch.setattr(deployment, "answering", away)
    deployment.name_run("demo [0:96)")


def test_a_trial_takes_secrets_before_its_pipeline_begins(make_recipe, monkeypatch):
    done = []
    monkeypatch.setattr(deployed, "take_secrets", lambda: done.append("secrets"))
    monkeypatch.setattr(deployed.pipeline.pipeline, "fn", lambda *given: done.append(given))
    recipe = make_recipe()
    deployed.run_trial.fn(recipe, "skip", "one")
    assert done == ["secrets", (recipe, "skip", "one")]
    assert deployed.run_trial.name == "pipeline"  # a sweep asks for pipeline/trial


@pytest.mark.parametrize(("section", "values"), [
    ("storage", {"root": SECRET_URL}), ("storage", {"cache": SECRET_URL}), ("lora", {"targets": ["q_proj", SECRET_URL]}),
    ("source", {"path": "a", "holdout": 1, "columns": {"question": ["a", SECRET_URL]}}),
])
def test_a_recipe_with_a_password_is_refused_by_the_server_and_by_itself(recipe_values, section, values):
    """Prefect's server holds the parameters of ``pipeline/trial`` against the schema, before it keeps them."""
    schema = parameter_schema(deployed.run_trial).model_dump()
    good, bad = recipe_values(), recipe_values() | {section: values}
    jsonschema.validate({"recipe": good}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"recipe": bad}, schema)
    with pytest.raises(ValidationError, match=rf"a password or token in {section}\.") as caught:
        Recipe.model_validate(bad)
    assert "hunter2" not in str(caught.value)


def test_a_password_in_a_mapping_is_refused_too(make_recipe):
    source = Source(path="a", holdout=1, columns={"question": SECRET_URL})
    with pytest.raises(ValidationError, match=r"a password or token in source\.columns\.question"):
        Recipe.model_validate({**dict(make_recipe()), "source": source})
