"""Stages run by direct calls up to the pool, links on top of it, and a source whose rows can be edited."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathtune.chain import Link, link_key
from mathtune.demo.problems import rows
from mathtune.engine import Engine
from mathtune.ranges import Range
from mathtune.schemas import VERDICTS
from mathtune.stages import data as data_stages
from mathtune.stages import train
from mathtune.workspace import Workspace

FIRST, SECOND = Range(0, 96), Range(96, 192)


def ignore(event, **fields):
    pass


def dies_at(step):
    def emit(event, **fields):
        if event == "step" and fields["step"] == step:
            raise KeyboardInterrupt

    return emit


@contextmanager
def prepared(recipe, emit=ignore):
    """The stages up to the pool by direct calls, with an engine in this process: ``work``, ``base``, ``raw``, ``parts``."""
    with Workspace(recipe, "only") as work:
        work.engine.run = Engine(emit).run
        base, raw = train.inspect_base(work).value, data_stages.download(work).value
        pool = (raw, "train.parquet") if recipe.task == "solver" else (data_stages.balance(work, raw).value, "balanced.parquet")
        yield SimpleNamespace(work=work, base=base, raw=raw, parts=data_stages.split(work, *pool).value)


def extend(run, wanted) -> Link:
    """Trains a range on top of the chain as a run does, and takes it."""
    train.open_chain(run.work, run.base, run.parts)
    link = train.train_range(run.work, run.base, run.parts, wanted, allow_gap=False).value
    run.work.chain.settle(link, train.chain_pins(run.work, run.base, run.parts), "accepted")
    return link


def untrained_link(run) -> Link:
    """A link of the first range that no engine made: enough to hold recipes against."""
    decided_by = train.sft_decisions(run.work, FIRST, train.range_rows(run.work, run.parts, FIRST, []))
    link = train.new_link(run.base, 1, None, "sft", link_key(None, "sft", decided_by), decided_by, run.work.recipe.lora,
                          {"adapter_digest": "d"}, FIRST)
    run.work.chain.publish(1, link.title, link.key, lambda folder: folder.mkdir() or link)
    run.work.chain.settle(link, train.chain_pins(run.work, run.base, run.parts), "accepted")
    return link


def scoring(margins: Callable[[pa.Table], np.ndarray] = lambda rows: np.where(rows["row_id"].to_numpy() % 2 == 0, 4.0, -4.0),
            altered: Callable[[pa.Table], pa.Table] = lambda table: table) -> Callable[[Any], dict[str, Any]]:
    """Instead of an engine: verdicts with a margin made up for each row, then ``altered``."""
    def run(job):
        rows = pq.read_table(job.rows)
        margin = margins(rows).astype(np.float32)
        nothing = [None] * len(rows)
        columns = [rows["row_id"], margin, np.zeros_like(margin), 1 / (1 + np.exp(-margin)), margin > 0, nothing, nothing]
        pq.write_table(altered(pa.table(columns, schema=VERDICTS)), Path(job.output) / "scores.parquet")
        return {}

    return run


def write_source(folder: Path, row: int = 0, **edited: str) -> Path:
    """A source of the generator's rows; ``edited`` replaces columns of one of them."""
    table = rows("verifier", 600, 3, "train").drop_columns(["family"]).to_pylist()
    table[row] |= edited
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "rows.parquet")
    return folder / "rows.parquet"
