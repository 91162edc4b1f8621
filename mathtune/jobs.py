"""The jobs that cross the border to the engine: pydantic models, sent as JSON, results as JSON beside Parquet files.

A job names files and recipe sections, nothing else, so it can be run again by hand:
``python -m mathtune.engine --job job.json``.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from mathtune.folders import Folders
from mathtune.recipe import Evaluation, Grpo, Hardware, Lora, Model, Prompt, Sft, Tracking
from mathtune.recipe_source import Count, Section

Task = Literal["verifier", "solver"]
MOST_HALVINGS = 16  # of what fits any card: nothing is left long before
SCORE_HALVINGS = 7  # the same of what prompts are scored in


class Place(Section):
    """A name in ``mathtune.folders``, as it crosses the border."""

    url: str = Field(description="what open_folders takes: a local path, or a URL")
    cache: str | None = Field(None, description="local folder of copies, for a URL")
    name: str = Field(description="prefix of the names below it")

    @classmethod
    def within(cls, folders: Folders, name: str) -> "Place":
        """A name in these folders."""
        return cls(url=folders.url, cache=str(folders.cache) if folders.cache else None, name=name)


def even_split(size: int, at_most: int) -> int:
    """The largest divisor of ``size`` up to ``at_most``: micro-batches of it make exactly one step."""
    return max(part for part in range(1, at_most + 1) if size % part == 0)


class _Job(Section):
    @property
    def ranks(self) -> int | None:
        """How many processes the engine must have that does this; None: as many as it has. One, the first, does all but SFT."""
        return None

    def halved(self):
        """The same job with half as much in memory at a time; None where there is nothing to halve."""
        return None


class _TrainingJob(_Job):
    """What both kinds of training have."""

    model: Model
    prompt: Prompt
    lora: Lora
    hardware: Hardware
    tracking: Tracking | None
    title: str = Field(description="run and range, for tracking")
    cache: str
    checkpoints: Place = Field(description="where this link's checkpoints lie")
    output: str = Field(description="empty folder for the adapter")


class InspectJob(_Job):
    """Look at the base before anything is computed: does it load, has it a tokenizer, do the labels differ?

    Result: ``{"base", "tokenizer"}`` (digests), ``{"parameters", "device", "dtype", "dtype_reason"}``.
    """

    kind: Literal["inspect"] = "inspect"
    task: Task
    model: Model
    prompt: Prompt
    hardware: Hardware
    cache: str = Field(description="folder for a built or fetched base and for digests of large files")

    @property
    def ranks(self) -> int:
        """Those that will train: a run begins with this job, and too few GPUs show at once."""
        return self.hardware.gpus


class MeasureJob(_Job):
    """Count tokens of a sample of rows, and plan how a step of such rows would be laid on this machine.

    Result: ``{"rows", "mean", "p95", "longest", "over_limit"}`` (tokens; share) and ``{"plan"}``, for people.
    """

    kind: Literal["measure"] = "measure"
    task: Task
    model: Model
    prompt: Prompt
    lora: Lora
    hardware: Hardware
    examples_per_step: int
    cache: str
    rows: str = Field(description="Parquet of rows")
    sample: int = Field(description="look at the first rows only")


class TokeniseJob(_Job):
    """Token ids of rows, once for all trainings of them. Needs the base's tokenizer, not its weights.

    Result: ``{"examples", "tokens", "label_tokens"}`` (what is left), ``{"shortened", "dropped"}`` (examples).
    """

    kind: Literal["tokenise"] = "tokenise"
    task: Task
    model: Model
    prompt: Prompt
    cache: str
    rows: str = Field(description="Parquet of rows")
    limit: int | None = Field(None, description="the first rows only")
    output: str = Field(description="Parquet file to write (mathtune.tokens)")


class SftJob(_TrainingJob):
    """Train one chunk. Result: adapter digest, steps, seconds, the training curve."""

    kind: Literal["sft"] = "sft"
    task: Task
    sft: Sft
    tokens: str = Field(description="Parquet of the chunk's token ids (mathtune.tokens)")
    validation_tokens: str | None = Field(description="the same of validation rows; None: no evaluation on the way")
    start_adapter: str | None = Field(description="PEFT folder to go on from; None: a fresh adapter")
    halvings: Count = Field(0, description="how often it ran out of memory: each time a pack holds half as many tokens")

    @property
    def ranks(self) -> int:
        """All of them train."""
        return self.hardware.gpus

    def halved(self) -> "SftJob | None":
        """With packs of half the tokens. The engine ends this where packs cannot be smaller: it knows how large they are."""
        return self.model_copy(update={"halvings": self.halvings + 1}) if self.halvings < MOST_HALVINGS else None


class GrpoJob(_TrainingJob):
    """Refine a solver's adapter by GRPO. Result: as for SFT, with reward and KL in the curve."""

    kind: Literal["grpo"] = "grpo"
    grpo: Grpo
    rows: str = Field(description="Parquet of the prompts' rows")
    start_adapter: str

    @property
    def ranks(self) -> int:
        """One: trl's trainer would wait for the others in every step."""
        return 1

    @property
    def step_size(self) -> int:
        """Completions of one optimizer step."""
        return self.grpo.prompts_per_step * self.grpo.generations

    @property
    def micro_batch(self) -> int:
        """Completions of one forward pass."""
        return even_split(self.step_size, self.hardware.micro_batch)

    def halved(self) -> "GrpoJob | None":
        """With half the micro-batch and twice the accumulation; None where it is of one completion already."""
        if self.micro_batch == 1:
            return None
        return self.model_copy(update={"hardware": self.hardware.model_copy(update={"micro_batch": self.micro_batch // 2})})


class ScoreJob(_Job):
    """Verifier: label logits of every row. Solver: a greedy completion of every row. Result: counts and seconds."""

    kind: Literal["score"] = "score"
    task: Task
    model: Model
    prompt: Prompt
    evaluation: Evaluation
    hardware: Hardware
    cache: str
    adapter: str | None = Field(description="PEFT folder; None: the base alone")
    lora: Lora | None = Field(description="the adapter's shape")
    rows: str
    limit: int | None = Field(description="score only the first rows")
    words_rows: int = Field(description="verifier: rows whose generated words are looked at")
    sample_rows: int = Field(0, description="solver: rows of which evaluation.samples completions are drawn, too")
    blocks: Place = Field(description="where blocks of rows lie that are done")
    output: str = Field(description="folder to write scores.parquet to (schemas.VERDICTS or schemas.SOLUTIONS)")
    halvings: Count = Field(0, description="how often it ran out of memory: each time packs and batches are half as large")

    @property
    def batch_size(self) -> int:
        """Rows that are generated for at once."""
        return max(1, self.evaluation.batch_size >> self.halvings)

    def halved(self) -> "ScoreJob | None":
        """With packs of half the tokens and batches of half the rows; None where nothing is left to halve."""
        smallest = self.halvings == SCORE_HALVINGS if self.task == "verifier" else self.batch_size == 1
        return None if smallest else self.model_copy(update={"halvings": self.halvings + 1})


Job = InspectJob | MeasureJob | TokeniseJob | SftJob | GrpoJob | ScoreJob
JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
