"""Several ranks train a chunk together: real processes under ``accelerate launch`` on the CPU, and every way they may end."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathtune.devices import choose_compute
from mathtune.engine_client import EngineClient
from mathtune.engine_process import environment
from mathtune.errors import Interrupted, ModelError
from mathtune.jobs import InspectJob
from mathtune.ranks import Ranks
from mathtune.recipe import Hardware, Lora, Model
from mathtune.sft import train_chunk
from tests.jobs_fixtures import CPU, grpo_job, score_job, sft_job
from tests.training_fixtures import Events, fresh, two_epochs

TWO = CPU.model_copy(update={"gpus": 2})


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def client(events, tmp_path):
    with EngineClient(tmp_path / "engine.log", lambda event: events(**event), silent_seconds=60) as client:
        yield client


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """The result of two ranks that nobody disturbed (two epochs, dropout), on a machine whose user has set accelerate up."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "home" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("{compute_environment: LOCAL_MACHINE, distributed_type: FSDP, mixed_precision: bf16, num_processes: 3, "
                      "main_process_port: 1, dynamo_config: {dynamo_backend: INDUCTOR}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "home"))
        with EngineClient(folder / "engine.log", lambda event: None) as client:
            return client.run(sft_job(tiny_base, folder, hardware=TWO, sft=two_epochs()))


def await_end_of(pids: set[int]) -> None:
    """Fails where one of these processes is still there after 10 s."""
    deadline = time.monotonic() + 10
    while left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.slow
def test_two_ranks_train_what_one_does_and_one_goes_on_with_what_two_began(client, tiny_base, tmp_path):
    """Without dropout: the masks of two ranks are not those of one. The last step has one example, and one rank none."""
    def job(name, gpus):  # of one rank three packs a step, of two four
        hardware = CPU.model_copy(update={"pack_tokens": 350, "gpus": gpus})
        sft = two_epochs(evaluate_every=2, evaluate_rows=20, keep_best=True, epochs=1)
        return sft_job(tiny_base, tmp_path / name, "solver", 33, lora=Lora(rank=8, alpha=16), hardware=hardware, sft=sft)

    def adapter(name):
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    def alike(result, name):
        for curve, figure in (("steps", "loss"), ("steps", "grad_norm"), ("steps", "tokens"), ("evals", "eval_loss")):
            mine, theirs = ([entry[figure] for entry in one["curve"][curve]] for one in (result, expected))
            assert mine == pytest.approx(theirs, rel=1e-5), figure
        assert result["best_step"] == expected["best_step"]
        mine, theirs = adapter(name), adapter("alone")
        assert all((mine[tensor] - theirs[tensor]).norm() < 1e-5 * theirs[tensor].norm() for tensor in theirs)

    expected = train_chunk(job("alone", 1), fresh(job("alone", 1)), Events())
    alike(client.run(job("together", 2)), "together")
    shutil.rmtree(tmp_path / "together" / "checkpoints" / "step-00000003")
    events = Events()
    alike(train_chunk(job("together", 1), fresh(job("together", 1)), events), "together")
    assert [event["step"] for event in events.of("resumed")] == [2] and [event["step"] for event in events.of("step")] == [3]


@pytest.mark.slow
def test_whatever_befalls_a_rank_a_fresh_engine_goes_on_to_the_same_bytes(
        client, events, whole, tiny_base, tmp_path, monkeypatch):
    """Ordinals count in one process: each fault strikes another engine."""
    faults = [{"at": "step", "do": "kill", "rank": 1, "ordinal": 3}, {"at": "loss", "do": "nan", "rank": 1, "ordinal": 4},
              {"at": "checkpoint:sealed", "do": "kill", "rank": 0, "ordinal": 3}]
    monkeypatch.setenv("MATHTUNE_FAULT", json.dumps([{**fault, "once": str(tmp_path / fault["at"])} for fault in faults]))
    result = client.run(sft_job(tiny_base, tmp_path, hardware=TWO, sft=two_epochs()))
    for what, incident in zip(("the end of rank 1 of 2", "step 6: loss is nan; row_id", "the end of rank 0 of 2"),
                              result["incidents"], strict=True):
        assert what in incident
    assert [event["step"] for event in events.of("resumed")] == [2, 4, 8]
    assert result["adapter_digest"] == whole["adapter_digest"] and result["redone"]["largest_loss_difference"] == 0


@pytest.mark.slow
def test_signals_stop_all_ranks_at_one_step_which_is_saved(client, events, whole, tiny_base, tmp_path):
    def terminate_rank_1():
        os.kill(next(ready["pid"] for ready in events.of("ready") if ready["rank"] == 1), signal.SIGTERM)

    def terminate_the_launcher():
        os.kill(client._process.pid, signal.SIGTERM)

    def stop_the_control_plane():
        raise KeyboardInterrupt

    todo = {2: terminate_rank_1, 5: terminate_the_launcher, 8: stop_the_control_plane}

    def on_event(event):
        events(**event)
        if event["event"] == "step":
            todo.pop(event["step"], lambda: None)()

    client.on_event = on_event
    job = sft_job(tiny_base, tmp_path, hardware=TWO, sft=two_epochs(save_every=100))
    for expected in (Interrupted, Interrupted, KeyboardInterrupt):
        with pytest.raises(expected, match=r"stopped at step \d+ of 12, which is saved" if expected is Interrupted else None):
            client.run(job)
        assert events.of("checkpoint")[-1]["step"] == events.of("step")[-1]["step"]
    assert events.of("stopped")[0]["saved"]
    await_end_of({ready["pid"] for ready in events.of("ready")})
    saved = [event["step"] for event in events.of("checkpoint")]
    assert client.run(job)["adapter_digest"] == whole["adapter_digest"]
    assert [event["step"] for event in events.of("resumed")] == saved


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_is_told_of_and_all_go_on_with_less(client, events, tiny_base, tmp_path, monkeypatch):
    fault = {"at": "step", "do": "memory", "rank": 1, "ordinal": 3, "once": str(tmp_path / "fired")}
    monkeypatch.setenv("MATHTUNE_FAULT", json.dumps(fault))
    result = client.run(sft_job(tiny_base, tmp_path, hardware=TWO))
    assert "CUDA out of memory" in result["incidents"][0] and "with half" in result["incidents"][0]
    assert [event["step"] for event in events.of("resumed")] == [2] and result["steps"] == 6


@pytest.mark.slow
def test_the_first_rank_scores_with_the_base_it_has_and_one_process_does_grpo(client, events, tiny_base, tmp_path):
    solver, again = (sft_job(tiny_base, tmp_path / name, task="solver", n=16, hardware=TWO) for name in ("cold", "warm"))
    client.run(InspectJob(task="solver", model=solver.model, prompt=solver.prompt, hardware=TWO, cache=solver.cache))
    cold, adapter = client.run(solver), Path(solver.output)
    assert client.run(score_job(tiny_base, tmp_path / "score", "solver", adapter, n=4))["rows"] == 4
    assert client.run(again)["adapter_digest"] == cold["adapter_digest"]
    assert len(events.of("ready")) == 2 and sum(event["text"].startswith("loading") for event in events.of("phase")) == 1
    refined = grpo_job(tiny_base, tmp_path / "grpo", adapter, max_steps=1, prompts_per_step=1, generations=2)
    assert client.run(refined.model_copy(update={"hardware": TWO}))["steps"] == 1
    assert [event["rank"] for event in events.of("ready")[2:]] == [0]


@pytest.mark.slow
def test_no_rank_outlives_a_control_plane_that_is_killed(events, tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, hardware=TWO)
    child = os.fork()
    if child == 0:
        with open(tmp_path / "events", "w") as file:
            client = EngineClient(tmp_path / "engine.log", lambda event: print(json.dumps(event), file=file, flush=True))
            client.run(job.model_copy(update={"sft": job.sft.model_copy(update={"epochs": 1000})}))
        os._exit(0)
    seen: list = []
    while not any(event["event"] == "step" for event in seen):
        time.sleep(0.2)
        text = (tmp_path / "events").read_text() if (tmp_path / "events").exists() else ""
        seen = [json.loads(line) for line in text.splitlines()]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    ranks = {event["pid"] for event in seen if event["event"] == "ready"}
    assert len(ranks) == 2
    await_end_of(ranks)


@pytest.mark.parametrize(("visible", "remedy"), [(0, "hardware.gpus=1, or hardware.device=cpu for 2"), (1, "hardware.gpus=1,")])
def test_more_gpus_than_there_are_is_said_before_anything_is_loaded(monkeypatch, visible, remedy):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(ModelError, match=f"2 GPUs are asked for, torch sees {visible}") as caught:
        choose_compute(Model(base="any"), Hardware(gpus=2))
    assert caught.value.where == "hardware.gpus" and caught.value.remedy.startswith(remedy)
    assert choose_compute(Model(base="any"), TWO).device.type == "cpu"


def test_an_engine_sees_as_many_gpus_as_it_has_ranks_and_nothing_of_a_launcher_above(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [environment(ranks)["CUDA_VISIBLE_DEVICES"] for ranks in (1, 2)] == ["0", "0,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert [environment(ranks)["CUDA_VISIBLE_DEVICES"] for ranks in (1, 2)] == ["3", "3,5"]
    monkeypatch.setenv("RANK", "4")
    assert "RANK" not in environment(1)


def test_alone_a_rank_agrees_with_itself():
    ranks = Ranks.launched()
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    assert ranks.any(True) and not ranks.any(False)
    assert ranks.gather(7) == [7] and ranks.from_first(lambda: 8) == 8
    ranks.wait()
    ranks.raise_first(None)
    with pytest.raises(Interrupted, match="told"):
        ranks.raise_first(Interrupted("told"))
