"""Shared fixtures: a tiny untrained base, a job trained on it, a recipe over generated rows, and Prefect's test server."""

import logging
import os
import sys
import uuid

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine: spinning threads starve each other on a busy machine
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from pathlib import Path

import fsspec
import pytest

from mathtune.folders import Folders, LocalFolders, open_folders
from mathtune.recipe import Recipe
from mathtune.recipe_file import parse_recipe

VERIFIER_TEMPLATE = "Question: {question}\nSolution: {solution}\nAnswer: {answer}\nCorrect?"
SOLVER_TEMPLATE = "Question: {question}\nSolution:\n"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A Llama of about 0.2 million random weights with the demo's tokenizer; its logits are wide enough to learn fast."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mathtune.demo.base import train_tokenizer

    folder = tmp_path_factory.mktemp("base") / "tiny"
    tokenizer = train_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny_base, tmp_path_factory):
    """An SFT job with dropout over two epochs, trained in one go by a cold base: the job, its result and its events."""
    from mathtune.sft import train_chunk
    from tests.jobs_fixtures import sft_job
    from tests.training_fixtures import Events, fresh, two_epochs

    job = sft_job(tiny_base, tmp_path_factory.mktemp("undisturbed"), sft=two_epochs())
    events = Events()
    result = train_chunk(job, fresh(job), events)
    return job, result, events


@pytest.fixture
def recipe_values(tiny_base, tmp_path):
    """Plain values of a small verifier recipe (or, with ``task="solver"``, a solver) below ``tmp_path``."""

    def make(task: str = "verifier", **changes) -> dict:
        values = {
            "name": "small", "task": task,
            "source": {"generator": {"rows": 600, "test_rows": 60, "seed": 3}},
            "validation": {"rows": 60},
            "chunks": {"size": 96, "end": 192},
            "prompt": {"template": VERIFIER_TEMPLATE if task == "verifier" else SOLVER_TEMPLATE},
            "model": {"base": str(tiny_base), "max_length": 192},
            "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
            "sft": {"learning_rate": 5e-3, "examples_per_step": 16, "save_every": 2},
            "hardware": {"device": "cpu"},
            "evaluation": {"words_rows": 20, "max_new_tokens": 16, "batch_size": 60},
            "storage": {"root": str(tmp_path / "store"), "runs": str(tmp_path / "runs")},
        }
        return {**values, **changes}

    return make


@pytest.fixture
def make_recipe(recipe_values):
    """``recipe_values`` as a ``Recipe``."""

    def make(task: str = "verifier", **changes) -> Recipe:
        return parse_recipe(recipe_values(task, **changes))

    return make


@pytest.fixture(scope="session")
def prefect_server():
    """Prefect's test server; costs about 16 s once."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module", autouse=True)
def unsent_events():
    """Prefect keeps on sending the events of this process to the server that it met first, each for seconds where that one is
    gone: the next module begins anew."""
    yield
    if worker := sys.modules.get("prefect.events.worker"):
        from flows.execute import forget_events

        forget_events()
        worker.EventsWorker.drain_all(timeout=0)


@pytest.fixture(scope="module")
def engine_keeper():
    from tests.engine_fixtures import Keeper

    keeper = Keeper()
    yield keeper
    keeper.end()


@pytest.fixture
def one_engine(engine_keeper, monkeypatch):
    """The runs of this process share an engine, where they would start it alike."""
    monkeypatch.setattr("mathtune.engine_client.EngineProcess", engine_keeper.take)


@pytest.fixture(scope="session")
def s3_server():
    """moto's S3 server on a port of its own, found through the environment as any S3 would be; yields a bucket's URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("mathtune-tests")
        yield "s3://mathtune-tests"
    server.stop()


@pytest.fixture
def s3_url(s3_server, tmp_path):
    """An empty prefix of the bucket."""
    return f"{s3_server}/{tmp_path.name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def folders(request, tmp_path) -> Folders:
    """Empty folders on a local path, and in an object store: the same promises on both."""
    if request.param == "local":
        return LocalFolders(tmp_path / "folders")
    return open_folders(request.getfixturevalue("s3_url"), tmp_path / "copies")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real GSM8K rows beside the project, where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("no real GSM8K rows beside the project")
    return folder


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch) -> Path:
    """The folder to which W&B writes the runs of a machine without a key."""
    import wandb

    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it keeps the settings of the process's first run
    yield tmp_path / "wandb"
    wandb.teardown()
