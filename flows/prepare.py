"""What every flow does first: open the workspace, look at the base, bring the data up to date, hold the chain against it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mathtune.chain import Link
from mathtune.errors import TrainingError
from mathtune.figures import Forgetting
from mathtune.gpus import Hold, hold_gpus
from mathtune.parent import end_with_named_parent
from mathtune.recipe import Recipe
from mathtune.stages import probes
from mathtune.stages.evaluate import metrics_of
from mathtune.stages.judge import Decision, check_decision
from mathtune.stages.report import chain_so_far, make_record
from mathtune.stages.train import open_chain
from mathtune.store import Artifact
from mathtune.workspace import Workspace, new_execution
from storage import ArtifactStore, CheckpointStore
from tasks.artifacts import show_chain
from tasks.data import balance, check_base, download, leaks, prompt_leaks, split
from tasks.outbox import open_outbox
from tasks.results import evaluate, judge, probe, report, submit
from tasks.servers import is_configured
from tasks.slots import lease_gpus


@dataclass
class Run:
    """What a flow knows so far.

    Attributes:
        work: the workspace.
        base: what ``check_base`` found.
        data: artifacts of the data stages by name (download, balance, split, leaks, prompt-leaks).
        links: of the chain, in order.
        served: keys of the links that were in the chain before.
        scores: score artifacts on the validation rows by link key; ``""`` is the base's.
        submission: facts of the submission, once there is one.
    """

    work: Workspace
    base: dict[str, Any]
    data: dict[str, Artifact]
    links: list[Link]
    served: set[str]
    scores: dict[str, Artifact] = field(default_factory=dict)
    submission: dict[str, Any] | None = None

    @property
    def parts(self) -> Artifact:
        return self.data["split"]

    @property
    def pool_rows(self) -> int:
        return self.parts.facts["pool"]

    def check_prompts(self) -> None:
        """Looks for validation and test questions among GRPO's prompts, once."""
        if "prompt-leaks" not in self.data:
            self.data["prompt-leaks"] = prompt_leaks(self.work, self.data["download"], self.parts, self.data["leaks"])

    def evaluate(self, link: Link | None) -> None:
        """Scores a link, or the base alone."""
        title = link.title if link else "base"
        self.scores[link.key if link else ""] = evaluate(self.work, self.base, self.parts, link, self.data["download"], title)

    def place(self, link: Link, decision: Decision | None) -> None:
        """Scores a link and its parent; a link that has no place in the chain yet is judged."""
        self.evaluate(link)
        if any(entry.link.key == link.key for entry in self.work.chain.entries()):
            return
        parent = next((one for one in self.work.chain.links() if one.key == link.parent), None)
        if link.parent not in self.scores:
            self.evaluate(parent)
        judge(self.work, self.base, self.parts, link, self.scores[link.key], self.scores[link.parent], decision)
        self.show_chain()

    def show_chain(self) -> None:
        """Shows on Prefect's page how far the chain is."""
        base = metrics_of(self.work, self.scores[""], self.parts, self.data["download"]) if "" in self.scores else None
        show_chain(chain_so_far(self.work, base))

    def submit(self, link: Link) -> None:
        """Predictions and, for a verifier, the submission from a link; why there is none is in the report, too."""
        try:
            self.submission = submit(self.work, self.base, self.data["download"], self.parts, link)
        except TrainingError as error:
            self.submission = {"refused": error.what}
            raise

    def report(self) -> dict[str, Any]:
        """Writes the run folder. Returns the record as plain values, with the report's path."""
        self.links = self.work.chain.links()
        for link in [None, *self.links]:  # what another execution has scored is served
            if (link.key if link else "") not in self.scores:
                self.evaluate(link)
        record = make_record(self.work, self.links, self.served, self.scores, self.base, self.data, self.submission,
                             self.forgetting())
        path = report(self.work, record, self.scores, self.data)
        return {"report": path, "record": record.model_dump(mode="json")}

    def forgetting(self) -> Forgetting | None:
        """Asks every link about the chunks that it grew from, where there is something to forget."""
        if not probes.is_wanted(self.work.recipe, self.links):
            return None
        asked = [probe(self.work, self.base, self.parts, self.links[:i], link.title) for i, link in enumerate(self.links, 1)]
        return probes.forgetting(self.work.recipe, self.links, asked)


@contextmanager
def open_workspace(recipe: Recipe, execution: str | None, hold: Hold | None = None) -> Iterator[Workspace]:
    """The workspace of one execution, in the stores that the recipe's blocks name, else in its folders; within it, a flow's
    artifacts are sent to Prefect.

    Args:
        hold: waits for the engine's GPUs; default: for their locks, and where a Prefect server is configured for its slots.
    """
    end_with_named_parent()  # a worker's run whose worker is killed saves and ends
    hold = hold or (lease_gpus if is_configured() else hold_gpus)
    storage = recipe.storage
    artifacts = ArtifactStore.load(storage.artifact_block).open() if storage.artifact_block else None
    chain = CheckpointStore.load(storage.checkpoint_block).open(recipe.chain) if storage.checkpoint_block else None
    with Workspace(recipe, execution or new_execution(), artifacts, chain, hold) as work:
        with open_outbox(lambda text: work.emit("notice", text=text)):
            yield work


def prepare(work: Workspace, decision: Decision | None = None) -> Run:
    """Base and data up to date, the chain held against the recipe, a person's decision against the chain."""
    base = check_base(work)
    data = prepare_data(work)
    links = open_chain(work, base, data["split"])
    check_decision(work, decision)
    run = Run(work, base, data, links, {link.key for link in links})
    if work.recipe.grpo and any(link.kind == "grpo" for link in links):
        run.check_prompts()
    if links:
        run.show_chain()
    return run


def prepare_data(work: Workspace) -> dict[str, Artifact]:
    """Artifacts of the data stages by name."""
    data = {"download": download(work)}
    if work.recipe.task == "verifier":
        data["balance"] = balance(work, data["download"])
        data["split"] = split(work, data["balance"], "balanced.parquet")
    else:
        data["split"] = split(work, data["download"], "train.parquet")
    data["leaks"] = leaks(work, data["download"], data["split"])
    return data
