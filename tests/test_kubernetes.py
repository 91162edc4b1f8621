"""The Kubernetes templates: what needs no cluster. Where prefect-kubernetes and kubernetes-validate are installed, a run's Job
is made by Prefect's own worker, and all is held against Kubernetes' schemas. They are large, and not among the project's own:
``.ci/run`` installs them in a folder beside, and runs this file with it once more; ``make test`` skips these tests.
"""

import asyncio
import json
import uuid
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.templating import find_placeholders

FOLDER = Path(__file__).parents[1] / "deployments/kubernetes"
TEMPLATE = json.loads((FOLDER / "base-job-template.json").read_text())
TEAM = list(yaml.safe_load_all((FOLDER / "team.yaml").read_text()))
VERSIONS = ("1.31", "1.34", "1.37")
PASSWORD = "team:canary"


def test_every_placeholder_of_the_template_is_a_variable_and_the_other_way_round():
    used = {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == set(TEMPLATE["variables"]["properties"])


def test_the_secrets_and_claims_that_the_template_names_are_those_of_the_manifest():
    variables = {name: one.get("default") for name, one in TEMPLATE["variables"]["properties"].items()}
    pods = [one["spec"]["template"]["spec"] for one in TEAM if one["kind"] == "Deployment"]
    claims = {one["metadata"]["name"] for one in TEAM if one["kind"] == "PersistentVolumeClaim"}
    assert claims == {variables["home_claim"]}
    worker = {one["name"]: one for one in pods[1]["containers"][0]["env"]}
    reference = worker["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    told = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_"
    assert (worker[told + "NAME"]["value"], worker[told + "KEY"]["value"]) == (reference["name"], reference["key"])
    assert (reference["name"], reference["key"]) == (variables["secret"], "PREFECT_API_AUTH_STRING")
    assert {one["metadata"]["namespace"] for one in TEAM} == {variables["namespace"]}


@pytest.fixture
def job(monkeypatch) -> dict:
    """What Prefect's Kubernetes worker would create for a run of a deployment, under the worker's own environment."""
    pytest.importorskip("prefect_kubernetes")
    import prefect_kubernetes.worker as module

    container = TEAM[3]["spec"]["template"]["spec"]["containers"][0]
    variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    created = []

    class Batch:
        def __init__(self, client):
            pass

        async def create_namespaced_job(self, namespace, manifest):
            created.append((namespace, manifest))

    monkeypatch.setattr(module, "BatchV1Api", Batch)

    async def make() -> None:
        values = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}, "gpus": 2}
        configuration = await module.KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values)
        run = FlowRun(id=uuid.uuid4(), name="demo-next-600", flow_id=uuid.uuid4())
        configuration.prepare_for_flow_run(run, flow=Flow(id=run.flow_id, name="train-range"))
        await module.KubernetesWorker("gpu")._create_job(configuration, client=None)

    with temporary_settings({PREFECT_API_URL: variables["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: PASSWORD}):
        asyncio.run(make())
    (namespace, manifest), = created
    assert namespace == "mathtune"
    return manifest


def test_a_run_is_a_job_with_a_gpu_that_kubernetes_does_not_start_again(job):
    pod = job["spec"]["template"]["spec"]
    container, = pod["containers"]
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == (0, "Never", 60)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["command"] + container["args"] == ["tini", "--", "prefect", "flow-run", "execute"]
    environment = {one["name"]: one for one in container["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"]["value"] == "reschedule"  # a drained node's run comes back
    assert environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]["name"] == "mathtune-run"
    assert PASSWORD not in json.dumps(job)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_it_all(job, version):
    validate = pytest.importorskip("kubernetes_validate").validate
    for manifest in (job, *TEAM):
        validate(manifest, version, strict=True)
    broken = json.loads(json.dumps(job))
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(Exception, match="terminationGracePeriod"):
        validate(broken, version, strict=True)
