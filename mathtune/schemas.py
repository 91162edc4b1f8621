"""The columns of every Parquet table that a stage writes: the border between stages, in one place."""

import pyarrow as pa

# row_id: position in the source split; the name of a row for the whole life of a chain.
SOLVER_ROWS = pa.schema([
    ("row_id", pa.int64()),
    ("question", pa.large_string()),
    ("answer", pa.large_string()),
    ("solution", pa.large_string()),
])
VERIFIER_ROWS = SOLVER_ROWS.append(pa.field("is_correct", pa.bool_()))

# Who wrote the solution of each training row, where the recipe maps a column for it: row i has row_id i, those that are held
# out or set aside included; "" where it is not known.
ORIGINS = pa.schema([("row_id", pa.int64()), ("generator", pa.large_string())])

# Test rows carry the ID of the submission; is_correct is null where the truth is not known.
TEST_ROWS = VERIFIER_ROWS.append(pa.field("ID", pa.int64()))

# What a verifier says of a row. logit_* are the logits of the two labels' first tokens at the last prompt position,
# computed in the compute dtype (on a GPU with its rounding); p_true is their two-way softmax. said: true, false,
# malformed, or null where no words were generated.
VERDICTS = pa.schema([
    ("row_id", pa.int64()),
    ("logit_true", pa.float32()),
    ("logit_false", pa.float32()),
    ("p_true", pa.float32()),
    ("prediction", pa.bool_()),
    ("said", pa.string()),
    ("words", pa.large_string()),
])

# What a solver wrote for a row, greedily. given: the answer found in the completion (null: none); correct: it is the right
# one; strict, flexible: right by lm-evaluation-harness's two marks for GSM8K; outcome: mathtune.figures.Outcome; finished: it
# ended by itself and was not cut off by the length limit; tokens: of the completion.
SOLUTIONS = pa.schema([
    ("row_id", pa.int64()),
    ("completion", pa.large_string()),
    ("given", pa.large_string()),
    ("correct", pa.bool_()),
    ("strict", pa.bool_()),
    ("flexible", pa.bool_()),
    ("outcome", pa.string()),
    ("finished", pa.bool_()),
    ("tokens", pa.int32()),
])

# The same of completions that were drawn by chance, several a row; sample: from 0. same_as: the first sample of the row whose
# answer means the same, itself where none before does (null: no answer).
SAMPLES = pa.schema([("row_id", pa.int64()), ("sample", pa.int32()), *list(SOLUTIONS)[1:], ("same_as", pa.int32())])


def rows_schema(task: str) -> pa.Schema:
    """Schema of the training rows of a task (``"verifier"`` or ``"solver"``)."""
    return VERIFIER_ROWS if task == "verifier" else SOLVER_ROWS
