"""Jobs over a few rows, for tests that talk to the compute plane directly."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.demo.problems import rows
from mathtune.jobs import GrpoJob, Place, ScoreJob, SftJob, TokeniseJob
from mathtune.recipe import Evaluation, Grpo, Hardware, Lora, Model, Prompt, Sft
from mathtune.tokenise import tokenise_rows
from tests.conftest import SOLVER_TEMPLATE, VERIFIER_TEMPLATE

CPU = Hardware(device="cpu", pack_tokens=512, micro_batch=8)  # two packs for a step of 16 examples


def write_rows(path: Path, task: str, n: int, seed: int = 5) -> Path:
    """The generator's rows as a stage would write them."""
    table = rows(task, n, seed, "train").append_column("row_id", pa.array(range(n), pa.int64()))
    pq.write_table(table, path)
    return path


def made(folder: Path) -> Path:
    """An empty folder, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def place(folder: Path) -> Place:
    """Where a job's checkpoints lie: ``checkpoints/`` below its folder."""
    return Place(url=str(folder), name="checkpoints")


def tokenise_job(base: Path, folder: Path, task: str = "verifier", n: int = 96, **changes) -> TokeniseJob:
    """A job that tokenises ``n`` rows below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    template = VERIFIER_TEMPLATE if task == "verifier" else SOLVER_TEMPLATE
    return TokeniseJob(**{
        "task": task, "model": Model(base=str(base), max_length=192), "prompt": Prompt(template=template),
        "cache": str(folder / "cache"), "rows": str(write_rows(folder / "rows.parquet", task, n)),
        "output": str(folder / "tokens.parquet"), **changes})


def sft_job(base: Path, folder: Path, task: str = "verifier", n: int = 96, **changes) -> SftJob:
    """An SFT job below ``folder`` on ``n`` rows, which are tokenised; ``sft`` and the job's other fields can be changed.

    Where it evaluates on the way, it does so on the first of the same rows.
    """
    data = tokenise_job(base, folder, task, n)
    tokenise_rows(data)
    job = SftJob(**{
        "task": task, "model": data.model, "prompt": data.prompt,
        "lora": Lora(rank=8, alpha=16, dropout=0.1), "hardware": CPU, "tracking": None, "title": "test",
        "sft": Sft(learning_rate=5e-3, examples_per_step=16, save_every=2), "cache": str(folder / "cache"),
        "tokens": data.output, "validation_tokens": None, "start_adapter": None, "checkpoints": place(folder),
        "output": str(folder / "adapter"), **changes})
    if job.sft.evaluate_every is None:
        return job
    validation = {"limit": job.sft.evaluate_rows, "output": str(folder / "validation.parquet")}
    tokenise_rows(data.model_copy(update=validation))
    return job.model_copy(update={"validation_tokens": validation["output"]})


def grpo_job(base: Path, folder: Path, start: Path, **changes) -> GrpoJob:
    """A GRPO job on top of the adapter in ``start``."""
    folder.mkdir(parents=True, exist_ok=True)
    grpo = {"prompts": 8, "max_steps": 3, "generations": 4, "prompts_per_step": 2, "max_new_tokens": 12,
            "learning_rate": 1e-3, "save_every": 1}
    return GrpoJob(**{
        "model": Model(base=str(base), max_length=192), "prompt": Prompt(template=SOLVER_TEMPLATE), "hardware": CPU,
        "lora": Lora(rank=8, alpha=16, dropout=0.1), "grpo": Grpo(**{**grpo, **changes}), "tracking": None, "title": "test",
        "cache": str(folder / "cache"), "rows": str(write_rows(folder / "prompts.parquet", "solver", 8)),
        "start_adapter": str(start), "checkpoints": place(folder), "output": str(folder / "adapter")})


def score_job(base: Path, folder: Path, task: str = "verifier", adapter: Path | None = None, n: int = 40,
              **changes) -> ScoreJob:
    """A scoring job on ``n`` rows."""
    folder.mkdir(parents=True, exist_ok=True)
    template = VERIFIER_TEMPLATE if task == "verifier" else SOLVER_TEMPLATE
    return ScoreJob(**{
        "task": task, "model": Model(base=str(base), max_length=192), "prompt": Prompt(template=template), "hardware": CPU,
        "evaluation": Evaluation(batch_size=16, max_new_tokens=12), "cache": str(folder / "cache"),
        "adapter": str(adapter) if adapter else None, "rows": str(write_rows(folder / "scored.parquet", task, n, seed=9)),
        "lora": Lora(rank=8, alpha=16) if adapter else None, "limit": None, "words_rows": 10,
        "blocks": Place(url=str(folder), name="blocks"), "output": str(made(folder / "scores")), **changes})
