"""Token ids of rows, an artifact: made once for all trainings of a range by the same tokenizer and prompt."""

from pathlib import Path
from typing import Any

from mathtune.jobs import TokeniseJob
from mathtune.stages import pinned_model
from mathtune.stages.data import stage_key
from mathtune.store import Artifact
from mathtune.tokens import FILE
from mathtune.workspace import Workspace


def tokenised(work: Workspace, base: dict[str, Any], rows: Artifact, name: str, limit: int | None = None) -> Artifact:
    """``tokens.parquet`` of a file of ``rows``, or of its first ``limit`` rows; its facts are the job's result.

    Raises:
        DataError: a row does not fit and the recipe refuses that, or none is left.
    """
    recipe = work.recipe
    key = stage_key("tokens", rows=rows.files[name], limit=limit, task=recipe.task, tokenizer=base["tokenizer"],
                    prompt=recipe.prompt.model_dump(mode="json"), max_length=recipe.model.max_length,
                    overlong=recipe.model.overlong)

    def build(folder: Path) -> dict[str, Any]:
        result = work.engine.run(TokeniseJob(
            task=recipe.task, model=pinned_model(recipe, base), prompt=recipe.prompt, cache=str(work.cache),
            rows=str(rows.path(name)), limit=limit, output=str(folder / FILE)))
        return {name: value for name, value in result.items() if name != "incidents"}

    return work.artifacts.get_or_build("tokens", key, build)
