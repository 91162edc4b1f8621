"""A random walk over what can happen to a chunk while it is trained: whatever the order, the bytes are the undisturbed ones,
or there was a loud word (``notice``) and they are all the same."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mathtune.files import HOST
from mathtune.recipe import Sft
from mathtune.sft import train_chunk
from tests.folders_fixtures import damage_file
from tests.jobs_fixtures import sft_job
from tests.training_fixtures import Events, fresh

pytestmark = pytest.mark.slow
STEPS = 9
FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json", "manifest.json"]


class Killed(BaseException):
    """Ends a training as a crash would, between two events."""


class Chunk(RuleBasedStateMachine):
    """One chunk, its checkpoints, and whatever befalls them."""

    tiny_base: Path
    expected: str

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.job = sft_job(self.tiny_base, self.folder, sft=sft())
        self.base, self.events = fresh(self.job), Events()
        self.damaged = 0

    @rule(steps=st.integers(1, 5), saved=st.booleans())
    def train_and_be_killed(self, steps, saved):
        """After so many steps, or at the next checkpoint after them."""
        seen = 0

        def emit(event, **fields):
            nonlocal seen
            self.events(event, **fields)
            seen += event == "step"
            if seen >= steps and event == ("checkpoint" if saved else "step"):
                raise Killed

        try:
            train_chunk(self.job, self.base, emit)
        except Killed:
            pass

    @rule(step=st.integers(1, 3))
    def another_worker_trains_the_same(self, step):
        """On another base of its own, into the same checkpoints."""
        other = self.job.model_copy(update={"output": str(self.folder / "other")})

        def emit(event, **fields):
            if event == "step" and fields["step"] >= step:
                raise Killed

        try:
            train_chunk(other, fresh(other), emit)
        except Killed:
            pass

    @precondition(lambda self: self.checkpoints())
    @rule(which=st.integers(0, 9), file=st.sampled_from(FILES), how=st.sampled_from(["flip", "truncate", "zeroes", "remove"]))
    def a_checkpoint_is_damaged(self, which, file, how):
        checkpoints = self.checkpoints()
        path = checkpoints[which % len(checkpoints)] / file
        if path.is_file():
            damage_file(path, how)
            self.damaged += 1

    @precondition(lambda self: self.checkpoints())
    @rule(hours=st.integers(-48, 48))
    def the_clock_was_wrong(self, hours):
        for number, path in enumerate(self.checkpoints()):
            when = time.time() + 3600 * hours * (-1) ** number
            os.utime(path, (when, when))

    @rule()
    def a_killed_process_left_litter(self):
        litter = self.folder / "checkpoints" / f".staging-{HOST}-999999999-0a0b0c0d"
        litter.mkdir(parents=True, exist_ok=True)
        (litter / "half").write_bytes(b"half")

    @rule()
    def the_journal_is_cut_off(self):
        journal = self.folder / "checkpoints" / "journal.jsonl"
        if journal.is_file():
            journal.write_bytes(journal.read_bytes()[:-3])

    def teardown(self):
        result = train_chunk(self.job, self.base, self.events)
        assert result["adapter_digest"] == self.expected
        assert [step["step"] for step in result["curve"]["steps"]] == list(range(1, STEPS + 1))
        assert result["redone"]["largest_loss_difference"] == 0
        assert not list((self.folder / "checkpoints").glob(".staging-*"))
        aside = list((self.folder / "checkpoints").glob("damaged-*"))
        assert len(aside) <= self.damaged
        assert all((path / "WHY.txt").is_file() for path in aside)
        assert sum("set aside as" in event["text"] for event in self.events.of("notice")) == len(aside)
        shutil.rmtree(self.folder)

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))


def sft() -> Sft:
    return Sft(learning_rate=5e-3, examples_per_step=16, save_every=2, epochs=1.5)


def test_whatever_happens_the_bytes_are_the_undisturbed_ones(tiny_base, tmp_path):
    job = sft_job(tiny_base, tmp_path, sft=sft())
    Chunk.tiny_base, Chunk.expected = tiny_base, train_chunk(job, fresh(job), Events())["adapter_digest"]
    case = Chunk.TestCase
    case.settings = settings(max_examples=12, stateful_step_count=7, deadline=None, derandomize=True,
                             suppress_health_check=list(HealthCheck))
    case().runTest()
