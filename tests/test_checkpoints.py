"""Checkpoints: found by step, set aside when damaged or foreign, made when time is up, and the best or the last one used."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathtune.checkpoints import Checkpoints
from mathtune.folders import LocalFolders
from mathtune.journal import Journal
from mathtune.order import lay_out
from mathtune.resume import fingerprint
from mathtune.sft import make_order, train_chunk
from mathtune.tokens import read_tokens
from tests.folders_fixtures import damage_file
from tests.jobs_fixtures import CPU, sft_job
from tests.training_fixtures import Events, fresh, two_epochs


def checkpoints_of(job, folder, events, **identity):
    """The checkpoints of a finished job, copied to ``folder``."""
    shutil.copytree(Path(job.checkpoints.url) / "checkpoints", folder / "checkpoints")
    base, folders = fresh(job), LocalFolders(folder)
    order = make_order(job.sft, read_tokens(Path(job.tokens)).row_ids.tolist())
    identity = {"fingerprint": fingerprint(base.compute), "start": "", **identity}
    return Checkpoints(folders, "checkpoints", identity, order, events)


@pytest.fixture(scope="module")
def interrupted(tiny_base, tmp_path_factory):
    """The undisturbed job, killed in its eleventh step: whole checkpoints of steps 8 and 10."""
    job = sft_job(tiny_base, tmp_path_factory.mktemp("interrupted"), sft=two_epochs())

    def dies(event, **fields):
        if event == "step" and fields["step"] == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_chunk(job, fresh(job), dies)
    return job


def test_the_last_checkpoint_of_a_chunk_is_its_adapter_and_history_alone(undisturbed, interrupted):
    files = [{path.name for path in (Path(job.checkpoints.url) / "checkpoints" / step).iterdir()}
             for job, step in ((interrupted, "step-00000010"), (undisturbed[0], "step-00000012"))]
    assert files[0] - files[1] == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {"adapter_model.safetensors", "trainer_state.json"} <= files[1]


def test_a_checkpoint_says_what_comes_next_and_holds_no_pickle_of_arguments(undisturbed, tmp_path):
    job, _, _ = undisturbed
    checkpoints = checkpoints_of(job, tmp_path, Events())
    assert checkpoints.folders.names("checkpoints") == ["checkpoints/step-00000010", "checkpoints/step-00000012"]
    assert not list(tmp_path.rglob("training_args.bin"))  # a pickle that holds the Hub's token
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000010" / "manifest.json").read_text())
    assert "torch.float32" in manifest["fingerprint"] and "trl " in manifest["fingerprint"]
    assert manifest["place"]["next"] == checkpoints.order.ids_of(11) and len(manifest["place"]["next"]) == 16
    assert checkpoints.newest().step == 12


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors",
                                  "trainer_state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "zeroes", "remove"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(interrupted, tmp_path, file, damage):
    events = Events()
    checkpoints = checkpoints_of(interrupted, tmp_path, events)
    damage_file(tmp_path / "checkpoints" / "step-00000010" / file, damage)
    assert checkpoints.newest().step == 8
    assert file in events[0]["text"] and "set aside as damaged-step-00000010" in events[0]["text"]
    assert not (tmp_path / "checkpoints" / "step-00000010").exists()


def test_when_every_checkpoint_is_damaged_the_chunk_starts_again_from_its_parent_loudly(undisturbed, interrupted, tiny_base,
                                                                                             tmp_path):
    _, whole, _ = undisturbed
    job, events = sft_job(tiny_base, tmp_path, sft=two_epochs()), Events()
    shutil.copytree(Path(interrupted.checkpoints.url) / "checkpoints", tmp_path / "checkpoints")
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        damage_file(checkpoint / "optimizer.pt", "flip")
    assert train_chunk(job, fresh(job), events)["adapter_digest"] == whole["adapter_digest"]
    assert "it starts again from its parent" in [event["text"] for event in events.of("notice")][-1]
    assert not events.of("resumed")


@pytest.mark.parametrize(("other", "named"), [({"fingerprint": "torch.float32, torch 1.0"}, "torch 1.0"),
                                              ({"start": "x" * 64}, "start")])
def test_a_checkpoint_of_other_libraries_or_another_parent_is_not_mixed_in(undisturbed, tmp_path, other, named):
    job, _, _ = undisturbed
    events = Events()
    assert checkpoints_of(job, tmp_path, events, **other).newest() is None
    assert named in events[0]["text"] and "set aside" in events[0]["text"]


def test_a_checkpoint_of_other_examples_is_not_gone_on_from(undisturbed, tmp_path):
    job, _, _ = undisturbed
    events = Events()
    checkpoints = checkpoints_of(job, tmp_path, events)
    ids = checkpoints.order.ids
    checkpoints.order = lay_out([*ids[:-1], 10_000], 2 * len(ids), 16, job.sft.seed)
    assert checkpoints.newest() is None and "other examples" in events[0]["text"]


def test_checkpoints_are_found_by_step_whatever_the_clock_said(undisturbed, tmp_path):
    job, _, _ = undisturbed
    checkpoints = checkpoints_of(job, tmp_path, Events())
    for step, hours in ((10, 1), (12, -1)):
        when = time.time() + 3600 * hours
        os.utime(tmp_path / "checkpoints" / f"step-{step:08d}", (when, when))
    assert checkpoints.newest().step == 12
    checkpoints.keep(best=None)
    assert checkpoints.newest().step == 12


def test_going_on_elsewhere_takes_the_packs_of_the_checkpoint(undisturbed, interrupted, tiny_base, tmp_path):
    """Another machine, without the journal, would plan other packs; with dropout the bytes would be others."""
    _, whole, _ = undisturbed
    hardware = CPU.model_copy(update={"pack_tokens": 2 * CPU.pack_tokens})
    job, events = sft_job(tiny_base, tmp_path, sft=two_epochs(), hardware=hardware), Events()
    shutil.copytree(Path(interrupted.checkpoints.url) / "checkpoints", tmp_path / "checkpoints",
                    ignore=shutil.ignore_patterns("journal*"))
    assert train_chunk(job, fresh(job), events)["adapter_digest"] == whole["adapter_digest"]
    assert events.of("resumed") == [{"event": "resumed", "step": 10}]


def test_a_job_killed_after_its_last_step_trains_no_step_again(undisturbed, tiny_base, tmp_path):
    finished, whole, _ = undisturbed
    job, events = sft_job(tiny_base, tmp_path, sft=two_epochs()), Events()
    shutil.copytree(Path(finished.checkpoints.url) / "checkpoints", tmp_path / "checkpoints")
    result = train_chunk(job, fresh(job), events)
    assert result["adapter_digest"] == whole["adapter_digest"] and result["steps"] == 12 and not events.of("step")
    assert result["peak_gib"] is None and result["peak_rss_gib"] is None  # nothing was trained that could be measured


def test_a_checkpoint_is_made_when_time_is_up_though_the_steps_are_not(tiny_base, tmp_path):
    job, events = sft_job(tiny_base, tmp_path, sft=two_epochs(max_steps=4, save_every=100, save_minutes=1e-6)), Events()
    train_chunk(job, fresh(job), events)
    saved = events.of("checkpoint")
    assert [event["step"] for event in saved] == [1, 2, 3, 4]
    assert all(0 < event["seconds"] < 60 for event in saved)
    assert all(event["bytes"] > 100_000 for event in saved[:-1]) and saved[-1]["bytes"] < saved[0]["bytes"] / 2


def best_job(tiny_base, folder):
    """A job whose learning rate rises until it has ruined, for good, what the first steps taught."""
    return sft_job(tiny_base, folder, sft=two_epochs(
        learning_rate=50.0, keep_best=True, evaluate_every=2, save_every=2, evaluate_rows=48, schedule="constant_with_warmup",
        warmup=0.6, epochs=2.5))


def test_the_best_step_is_kept_where_the_recipe_says_so(tiny_base, tmp_path):
    job, events = best_job(tiny_base, tmp_path), Events()
    result = train_chunk(job, fresh(job), events)
    losses = {entry["step"]: entry["eval_loss"] for entry in result["curve"]["evals"]}
    best = min(losses, key=losses.get)
    assert result["best_step"] == best < result["steps"] - 4  # not one of the last two, which are kept anyway
    saved = load_file(tmp_path / "checkpoints" / f"step-{best:08d}" / "adapter_model.safetensors")
    final = load_file(Path(job.output) / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], final[name]) for name in final)


@pytest.mark.slow
def test_a_best_step_that_was_damaged_is_trained_again(tiny_base, tmp_path):
    job, events = best_job(tiny_base, tmp_path), Events()
    whole = train_chunk(job, fresh(job), Events())
    damage_file(tmp_path / "checkpoints" / f"step-{whole['best_step']:08d}" / "adapter_model.safetensors", "flip")
    result = train_chunk(job, fresh(job), events)
    assert result["adapter_digest"] == whole["adapter_digest"]
    assert f"step-{whole['best_step']:08d}/adapter_model.safetensors" in events.of("notice")[0]["text"]


def test_another_interval_counts_from_the_resume_on(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=two_epochs(save_every=4))

    def dies(event, **fields):
        if event == "step" and fields["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_chunk(job, fresh(job), dies)
    events = Events()
    train_chunk(job.model_copy(update={"sft": two_epochs(save_every=1)}), fresh(job), events)
    assert [event["step"] for event in events.of("checkpoint")] == [5, 6, 7, 8, 9, 10, 11, 12]


def test_packs_that_did_not_fit_are_not_tried_again_in_the_same_chunk(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=two_epochs())

    def dies(event, **fields):
        if event == "step" and fields["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_chunk(job.halved(), fresh(job), dies)
    result = train_chunk(job, fresh(job), Events())
    assert result["pack_tokens"] == 256 == job.hardware.pack_tokens // 2 and result["redone"]["attempts"] == 2


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl", "pack_tokens")


def test_every_attempt_keeps_the_budget_of_the_one_before(journal):
    assert journal.begin(4096, smallest=150) == 4096
    assert journal.begin(4096, halvings=1, smallest=150) == 2048
    assert journal.begin(4096, halvings=1, smallest=150) == 2048  # its engine died of something else
    assert journal.begin(4096, smallest=150) == 2048  # another run
    assert journal.begin(4096, halvings=1, smallest=150) == 1024  # whose memory ran out, too
    assert journal.begin(512, smallest=150) == 512 == journal.begin(4096, smallest=150)  # the recipe said less in between


def test_memory_that_runs_out_with_the_longest_example_alone_ends_the_attempts(journal):
    budgets = [journal.begin(4096, halvings, smallest=150) for halvings in range(7)]
    assert budgets == [4096, 2048, 1024, 512, 256, 150, None]
    assert journal.begin(4096, smallest=150) == 150 and journal.begin(4096, halvings=1, smallest=150) is None
