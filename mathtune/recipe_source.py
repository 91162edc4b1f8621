"""The source section of a recipe, and what all sections share: the base class, the kinds of values, templates."""

import re
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mathtune.credentials import forbid_credentials

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "letters, digits, '.', '_' and '-' only, at most 64, beginning with a letter or digit"


def _check_name(name: str) -> str:
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(NAME_RULE)
    return name


Name = Annotated[str, AfterValidator(_check_name)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def template_fields(template: str) -> set[str]:
    """Names of the ``{fields}`` of a template; a literal brace is written twice.

    Raises:
        ValueError: a single brace, or a field with a conversion or format (``{x!r}``, ``{x:5}``).
    """
    fields = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if spec or conversion:
            raise ValueError(f"{{{name}}} takes no conversion or format")
        if name is not None:
            fields.add(name)
    return fields


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know. Its JSON schema has no room for a password."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True,
                              json_schema_extra=forbid_credentials)


class Generator(Section):
    """Problems made by the package's own seeded generator; needs no network."""

    rows: Positive = Field(description="training rows to make")
    test_rows: Positive = Field(description="test rows to make, from seeds of their own")
    seed: Seed = 0


class Columns(Section):
    """Which source column feeds which field: a name, a list of names (the first that exists), or a
    ``{template}`` made of several columns."""

    question: str | tuple[str, ...] = "question"
    answer: str | tuple[str, ...] | None = Field("answer", description="proposed (verifier) or right (solver) answer")
    solution: str | tuple[str, ...] | None = "solution"
    label: str | None = Field(None, description="verifier only: is the answer right? default is_correct")
    generator: str | None = Field(None, description="who wrote the solution, for the evaluation's slices; not used otherwise")
    id: str | None = Field(None, description="the test rows' ID column; rows are numbered from 0 without one")


class Source(Section):
    """Where the rows come from: exactly one of ``hub``, ``path`` and ``generator``."""

    hub: str | None = Field(None, description="data set on the Hugging Face Hub, owner/name")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; pinned to its commit")
    config: str | None = Field(None, description="configuration (subset) on the Hub")
    path: str | None = Field(None, description="local Parquet, JSONL or CSV file, or a folder of them")
    generator: Generator | None = None
    train_split: str = "train"
    test_split: str | None = Field(None, description="split of the Hub data set, or file stem in the folder")
    test_path: str | None = Field(None, description="local file of test rows")
    holdout: Count = Field(0, description="without test rows: how many rows to hold out, by whole questions")
    columns: Columns = Columns()
    label_values: dict[str, bool] = Field({}, description='how to read labels that are not booleans, {"yes": true}')
    streaming: bool = Field(False, description="Hub: read row by row instead of downloading everything first")
    limit: Positive | None = Field(None, description="read at most so many training rows")

    @model_validator(mode="after")
    def _one_source(self):
        if sum(value is not None for value in (self.hub, self.path, self.generator)) != 1:
            raise ValueError("give exactly one of hub, path and generator")
        tests = [name for name in ("test_split", "test_path") if getattr(self, name)]
        if self.generator and (tests or self.holdout):
            raise ValueError("a generator makes its own test rows: no test_split, test_path or holdout")
        if not self.generator and len(tests) + bool(self.holdout) != 1:
            raise ValueError("give exactly one of test_split, test_path and holdout")
        if self.hub is None and (self.streaming or self.revision or self.config):
            raise ValueError("streaming, revision and config belong to a hub source")
        return self
