"""Token ids as a table: nothing lost on the way to the file, the prefix that all share, and when they are made again."""

from os.path import commonprefix

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathtune.engine import Engine
from mathtune.figures import Lengths
from mathtune.jobs import TokeniseJob
from mathtune.prompts import Examples
from mathtune.stages.tokens import tokenised
from mathtune.stages.train import range_rows
from mathtune.tokenise import LENGTH_BINS, counts
from mathtune.tokens import read_tokens, write_tokens
from tests.faults_fixtures import FIRST, SECOND, extend, ignore, prepared

few = st.integers(0, 3)  # few different ids: what begins alike shall be common
ids = st.one_of(few, st.integers(0, 2**31 - 1))
example = st.tuples(st.lists(few, max_size=6), st.lists(ids, max_size=8), st.lists(ids, min_size=1, max_size=3))


@st.composite
def examples(draw) -> Examples:
    """Prompts that often begin with the same tokens, each followed by a completion."""
    front = draw(st.lists(ids, max_size=5))
    parts = draw(st.lists(example, max_size=12))
    prompts = [front + second + rest for second, rest, _ in parts]
    return Examples(draw(st.lists(st.integers(0, 2**62), min_size=len(parts), max_size=len(parts))),
                    [prompt + completion for prompt, (_, _, completion) in zip(prompts, parts, strict=True)],
                    [len(prompt) for prompt in prompts], shortened=0, dropped=0)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples(), st.one_of(st.none(), st.integers(1, 15)))
def test_what_is_written_is_read(tmp_path, made, limit):
    write_tokens(made, tmp_path / "tokens.parquet")
    tokens = read_tokens(tmp_path / "tokens.parquet", limit)
    kept = len(made.row_ids) if limit is None else min(limit, len(made.row_ids))
    assert len(tokens) == kept and tokens.row_ids.tolist() == made.row_ids[:kept]
    assert [tokens.of(i).tolist() for i in range(kept)] == made.input_ids[:kept]
    assert tokens.prompt_lengths.tolist() == made.prompt_lengths[:kept]
    assert tokens.lengths.tolist() == [len(ids) for ids in made.input_ids[:kept]]
    assert tokens.label_tokens == sum(label != -100 for labels in made.labels[:kept] for label in labels)
    prompts = [ids[:length] for ids, length in zip(made.input_ids[:kept], made.prompt_lengths[:kept], strict=True)]
    without_last = [prompt[:min(map(len, prompts)) - 1] if min(map(len, prompts)) else [] for prompt in prompts]
    assert tokens.shared_prefix == len(commonprefix(without_last))


@given(st.data(), st.integers(1, 5000))
def test_every_length_up_to_the_limit_is_counted_in_its_bin(data, limit):
    lengths = data.draw(st.lists(st.integers(1, limit), max_size=5))
    examples = Examples(list(range(len(lengths))), [[0] * n for n in lengths], [0] * len(lengths), shortened=0, dropped=0)
    found = Lengths.model_validate(counts(examples, limit)["lengths"])
    assert len(found.counts) <= LENGTH_BINS and len(found.edges) == len(found.counts) + 1 and found.limit == limit
    assert found.edges[0] == 1 and found.edges[-2] <= limit < found.edges[-1]
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)


@pytest.fixture
def counting(make_recipe):
    """Stages up to the pool, with an engine that notes its jobs in ``run.jobs``."""
    with prepared(make_recipe(sft={"learning_rate": 1e-4, "examples_per_step": 16, "evaluate_every": 3, "evaluate_rows": 20})) \
            as run:
        run.jobs, engine = [], Engine(ignore)

        def note(job):
            run.jobs.append(job)
            return engine.run(job)

        run.work.engine.run = note
        yield run


CHANGES = [("prompt", "system", "Be strict.", True), ("model", "max_length", 100, True), ("sft", "learning_rate", 1e-3, False),
           ("sft", "seed", 7, False), ("lora", "rank", 4, False), ("hardware", "micro_batch", 2, False)]


def test_rows_are_tokenised_again_only_where_what_decides_their_tokens_has_changed(counting):
    run, recipe = counting, counting.work.recipe
    rows = range_rows(run.work, run.parts, FIRST, [])
    made = tokenised(run.work, run.base, rows, "rows.parquet")
    assert made.facts["examples"] == 96 and made.facts["label_tokens"] == 2 * 96  # the word and the end token
    assert made.facts["tokens"] == len(read_tokens(made.path("tokens.parquet")).ids)
    for section, field, value, decides in CHANGES:
        changed = getattr(recipe, section).model_copy(update={field: value})
        run.work.recipe = recipe.model_copy(update={section: changed})
        again = tokenised(run.work, run.base, rows, "rows.parquet")
        assert (again.cached, again.key == made.key) == (not decides, not decides), field
    assert len(run.jobs) == 1 + sum(decides for *_, decides in CHANGES)
    others = [tokenised(run.work, {**run.base, "tokenizer": "another"}, rows, "rows.parquet"),
              tokenised(run.work, run.base, rows, "rows.parquet", limit=10),
              tokenised(run.work, run.base, range_rows(run.work, run.parts, SECOND, []), "rows.parquet")]
    assert [other.facts["examples"] for other in others] == [96, 10, 96] and not any(other.cached for other in others)


def test_a_link_says_what_it_was_trained_on_and_its_tokens_are_served_to_the_next_attempt(counting):
    run = counting
    first = extend(run, FIRST)
    assert [job.limit for job in run.jobs if isinstance(job, TokeniseJob)] == [None, 20]
    counts = tokenised(run.work, run.base, range_rows(run.work, run.parts, FIRST, []), "rows.parquet").facts
    assert {name: first.result[name] for name in counts} == counts
    assert counts.keys() == {"examples", "tokens", "label_tokens", "shortened", "dropped", "lengths"}
    assert sum(counts["lengths"]["counts"]) == counts["examples"]
    assert [entry["step"] for entry in first.result["curve"]["evals"]] == [3, 6]
    run.jobs.clear()
    extend(run, SECOND)
    assert [job.limit for job in run.jobs if isinstance(job, TokeniseJob)] == [None]  # the validation rows are there
