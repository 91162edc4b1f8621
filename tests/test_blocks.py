"""The blocks: made without a server, saved and loaded with one, and used by a run that names them."""

from pathlib import Path

import pytest
import yaml

from deployments.bootstrap import make_pool, save_blocks
from flows.prepare import open_workspace
from storage import ArtifactStore, CheckpointStore

ROOT = Path(__file__).parents[1]


def test_a_block_opens_its_store_without_a_server(tmp_path):
    store = ArtifactStore(root=str(tmp_path / "artifacts")).open()
    made = store.get_or_build("stage", "key", lambda folder: (folder / "x").write_text("x") and {})
    assert made.folder == tmp_path / "artifacts" / "stage" / "key"
    assert CheckpointStore(root=str(tmp_path / "chains")).open("c").links() == []
    assert CheckpointStore().root == ".mathtune/chains"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_bootstrap_can_be_run_again_and_a_recipe_can_name_the_blocks(make_recipe, tmp_path):
    assert save_blocks(tmp_path) == ["mathtune-artifact-store/default", "mathtune-checkpoint-store/default"]
    assert save_blocks(tmp_path / "elsewhere") == []
    assert (make_pool("test-gpu"), make_pool("test-gpu")) == (True, False)
    assert ArtifactStore.load("default").root == str(tmp_path / "artifacts")
    recipe = make_recipe(storage={"runs": str(tmp_path / "runs"), "root": str(tmp_path / "unused"),
                                  "artifact_block": "default", "checkpoint_block": "default"})
    with open_workspace(recipe, "x") as work:
        assert work.artifacts.folders.root == tmp_path / "artifacts"
        assert (work.chain.folders.root, work.chain.name) == (tmp_path / "chains", "small")


def test_every_deployment_names_a_flow_that_is_there():
    import importlib

    from prefect import Flow

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert len(deployments) == 11
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow) and deployment.get("parameters", {}).keys() <= flow.parameters.properties.keys()
