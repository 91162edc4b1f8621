"""The recipe: everything that decides a result, as frozen pydantic models. Unknown keys are refused.

Three ways in, one model: a YAML file (``mathtune.recipe_file``), Prefect parameters (the UI's form), Python.
Every field has a meaning that something reads; a field that does nothing yet does not exist.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mathtune.credentials import found_text, keys_with_credentials
from mathtune.recipe_source import Count, Fraction, Name, Positive, Section, Seed, Source, template_fields

Recompute = Literal["none", "selective", "full"]
Minutes = Annotated[float, Field(gt=0)]
SAVE_EVERY = Field(200, description="steps between checkpoints")
SAVE_MINUTES = Field(5.0, description="a checkpoint is made after so many minutes, too, if the steps take longer")


class Balance(Section):
    """Equal classes (verifier only)."""

    per_class: Positive = Field(400_000, description="at most so many rows of each class")
    seed: Seed = 0


class Validation(Section):
    """Fixed validation rows: stratified by label, whole questions on one side."""

    rows: Positive = 10_000
    group_by: Literal["question", "none"] = "question"
    seed: Seed = 0


class Chunks(Section):
    """The ranges of the training pool that are trained one after the other."""

    size: Positive = 20_000
    start: Count = 0
    end: Positive | None = Field(None, description="default: the end of the pool")
    replay: Fraction = Field(0.0, description="rows of earlier ranges to add, as a fraction of the chunk's rows")

    @model_validator(mode="after")
    def _ordered(self):
        if self.end is not None and self.start >= self.end:
            raise ValueError(f"start ({self.start}) must be below end ({self.end})")
        return self


class Labels(Section):
    """The words a verifier answers with. Their first tokens must differ."""

    true: str = " True"
    false: str = " False"


class Prompt(Section):
    """How a row becomes text. One function builds it for training, scoring and submission."""

    system: str | None = None
    template: str = Field(description="{question}, {answer} and {solution} stand for the row's fields")
    labels: Labels = Labels()
    format: Literal["plain", "chat"] = Field("plain", description="chat: through the tokenizer's chat template")

    @model_validator(mode="after")
    def _known_fields(self):
        fields = template_fields(self.template)
        if unknown := sorted(fields - {"question", "answer", "solution"}):
            raise ValueError(f"unknown field {{{unknown[0]}}} in template; known: question, answer, solution")
        if "question" not in fields:
            raise ValueError("the template never uses {question}")
        return self


class Model(Section):
    """The frozen base."""

    base: str = Field(description="folder, Hub id, or builtin:demo (a small base that needs no network)")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    quantization: Literal["nf4", "none"] = Field("nf4", description="nf4: bitsandbytes, with double quantisation")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="compute dtype; auto: bfloat16 from SM 8.0, float16 below, float32 on a CPU")
    max_length: Positive = Field(1024, description="tokens of prompt and completion together")
    overlong: Literal["refuse", "drop"] = Field(
        "refuse", description="a solver's completion that does not fit; prompts lose their middle instead")


class Lora(Section):
    """The adapter."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Sft(Section):
    """Supervised fine-tuning of one chunk. Every chunk starts a fresh optimizer and schedule."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = Field(None, description="optimizer steps; overrides epochs")
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup: Fraction = Field(0.03, description="fraction of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch")
    examples_per_step: Positive = Field(64, description="examples of one optimizer step, whatever the card holds")
    evaluate_every: Positive | None = Field(None, description="steps between evaluations of the loss on validation rows")
    evaluate_rows: Positive = Field(256, description="validation rows for that loss")
    save_every: Positive = SAVE_EVERY
    save_minutes: Minutes = SAVE_MINUTES
    max_loss_jump: Annotated[float, Field(gt=1)] | None = Field(
        None, description="stop at a loss so many times the median of the last 20; default: go on")
    keep_best: bool = Field(False, description="end with the checkpoint of the lowest validation loss")
    seed: Seed = 0

    @model_validator(mode="after")
    def _best_needs_evaluation(self):
        if self.keep_best and self.evaluate_every != self.save_every:
            raise ValueError("keep_best needs evaluate_every equal to save_every: only a saved step can be kept")
        return self


class Grpo(Section):
    """GRPO refinement on top of the last SFT link (solver only)."""

    prompts: Positive = Field(description="questions drawn from the trained ranges of the pool")
    max_steps: Positive
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup: Fraction = 0.1
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch")
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.1
    beta: Annotated[float, Field(ge=0)] = Field(0.04, description="weight of the KL to the link it continues")
    generations: Annotated[int, Field(ge=2)] = Field(8, description="completions a prompt")
    prompts_per_step: Positive = 4
    max_new_tokens: Positive = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    correct_reward: Annotated[float, Field(ge=0)] = 1.0
    format_reward: Annotated[float, Field(ge=0)] = Field(0.2, description="for an answer given as #### N")
    alpha: Positive | None = Field(None, description="another alpha than the link's: B is scaled by old/new")
    targets: tuple[str, ...] | None = Field(None, description="more target modules: new ones start with B = 0")
    save_every: Positive = SAVE_EVERY
    save_minutes: Minutes = SAVE_MINUTES
    seed: Seed = 0


class Evaluation(Section):
    """Scoring on the fixed validation rows, after every link."""

    rows: Positive | None = Field(None, description="validation rows to score; default: all")
    batch_size: Positive = 32
    words_rows: Count = Field(200, description="verifier: rows whose generated words are looked at, too")
    max_new_tokens: Positive = Field(256, description="solver: longest completion")
    samples: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="solver: completions drawn by chance for each problem, for pass@k and majority@k")
    sample_rows: Positive = Field(200, description="solver: validation rows that are asked so")
    temperature: Annotated[float, Field(gt=0)] = Field(0.8, description="solver: of those completions")
    probe_rows: Count | None = Field(
        None, description="rows of every trained chunk that later links are asked again; default: verifier 200, solver 0")
    reject_p: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.01, description="a link below its parent with a smaller p of the paired test is rejected; null: never")


class Submission(Section):
    """The verifier's CSV of test predictions."""

    id_column: str = "ID"
    label_column: str = "is_correct"
    threshold: Literal["fitted"] | Fraction = Field(
        "fitted", description="rows above this P(True) are True; fitted: with a temperature, on half the validation questions")


class Leaks(Section):
    """Questions that stand in more than one of training pool, validation, test and GRPO prompts: looked for before training."""

    exact: Literal["stop", "report"] = Field("stop", description="what the same text in two parts does to the run")
    near: Fraction | None = Field(
        0.8, description="questions are nearly the same from this Jaccard similarity of their shingles; null: not looked for")


class Tracking(Section):
    """Weights & Biases through Trainer; offline where no key is in the environment."""

    project: str
    entity: str | None = None
    group: str | None = None
    name: str | None = Field(None, description="default: the run's name and the range")


class Hardware(Section):
    """How the work is laid on the machine. Nothing here changes which examples form a step."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Positive = Field(1, description="SFT: GPUs of this machine that train a chunk together, each some packs of a step; "
                           "with device cpu so many processes")
    pack_tokens: Positive | None = Field(
        None, description="SFT and scoring: tokens of one forward pass; default: planned from the card's memory")
    micro_batch: Positive = Field(8, description="GRPO: completions in one forward pass; a step accumulates them")
    recompute: Recompute | None = Field(
        None, description="SFT: what the backward pass computes again, for less memory; default: planned")
    resident: bool | None = Field(None, description="SFT and scoring: keep the weights dequantised; default: planned")
    memory_gib: Annotated[float, Field(gt=0)] | None = Field(None, description="use so much of the card; default: all of it")
    gradient_checkpointing: bool = Field(
        False, description="GRPO: recompute activations: less memory, about a third slower")
    deterministic: bool = Field(False, description="GPU: the same bytes every time, slower; a CPU's always are")
    engine_restarts: Count = Field(2, description="how often a job goes on in a fresh engine after the old one died")
    hang_minutes: Minutes = Field(20.0, description="an engine silent for so long while it works is taken for dead")


class Storage(Section):
    """Where artifacts, checkpoints and runs lie."""

    root: str = Field(".mathtune", description="folder of artifacts/ and chains/, or a URL such as s3://bucket/prefix")
    cache: str | None = Field(None, description="local folder of models/ and of copies; default: root where that is a folder, "
                              "else .mathtune")
    runs: str = Field("runs", description="folder of the runs")
    artifact_block: str | None = Field(None, description="saved ArtifactStore block to use instead of root/artifacts")
    checkpoint_block: str | None = Field(None, description="saved CheckpointStore block to use instead of root/chains")

    @property
    def local(self) -> str:
        """The folder on this machine for what need not outlive it."""
        return self.cache or (".mathtune" if "://" in self.root else self.root)


class Recipe(Section):
    """Everything that decides a result."""

    name: Name = Field(description="names the run and its folder, runs/<name>/")
    chain: Name = Field("", description="default: the run's name")
    task: Literal["verifier", "solver"]
    source: Source
    balance: Balance | None = Field(None, description="verifier only; default: 400,000 rows a class")
    validation: Validation = Validation()
    leaks: Leaks = Leaks()
    chunks: Chunks = Chunks()
    prompt: Prompt
    model: Model
    lora: Lora = Lora()
    sft: Sft = Sft()
    grpo: Grpo | None = None
    evaluation: Evaluation = Evaluation()
    submission: Submission | None = Field(None, description="verifier only; default: columns ID, is_correct")
    tracking: Tracking | None = None
    hardware: Hardware = Hardware()
    storage: Storage = Storage()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values):
        if isinstance(values, dict):
            values = dict(values)
            values["chain"] = values.get("chain") or values.get("name", "")
            if values.get("task") == "verifier":
                values["balance"] = values.get("balance") or {}
                values["submission"] = values.get("submission") or {}
        return values

    @model_validator(mode="after")
    def _without_credentials(self):
        if found := keys_with_credentials(self.model_dump()):
            raise ValueError(found_text(found))
        return self

    @model_validator(mode="after")
    def _consistent(self):
        if self.task == "solver" and (self.balance or self.submission):
            raise ValueError("balance and submission belong to a verifier")
        if self.task == "verifier" and self.grpo:
            raise ValueError("grpo belongs to a solver")
        if self.task == "verifier" and self.evaluation.samples:
            raise ValueError("evaluation.samples belongs to a solver: nothing is drawn of a verifier")
        if self.task == "solver" and (given := template_fields(self.prompt.template) - {"question"}):
            raise ValueError(f"a solver's prompt must not hold the {{{min(given)}}}")
        if self.task == "solver" and self.evaluation.max_new_tokens >= self.model.max_length:
            raise ValueError("evaluation.max_new_tokens leaves no room for a prompt in model.max_length")
        if self.grpo and self.grpo.max_new_tokens >= self.model.max_length:
            raise ValueError("grpo.max_new_tokens leaves no room for a prompt in model.max_length")
        if self.grpo and self.grpo.targets and not set(self.lora.targets) <= set(self.grpo.targets):
            raise ValueError("grpo.targets may add target modules to lora.targets, not remove them")
        return self

