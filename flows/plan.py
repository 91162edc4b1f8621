"""``mathtune plan``: what a run would do, what is there already, tokens, memory and time. Computes no stage."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.prepare import open_workspace
from mathtune.chain import Entry, Link, disagreements
from mathtune.gpus import no_gpus
from mathtune.jobs import InspectJob, MeasureJob
from mathtune.planner import NF4_BYTES
from mathtune.ranges import Range, chunk_ranges
from mathtune.recipe import Model, Recipe
from mathtune.sources import pin_source, source_identity
from mathtune.stages import pinned_model
from mathtune.stages.data import stage_key
from mathtune.stages.leaks import leaks_key, summary
from mathtune.stages.probes import probe_rows
from mathtune.stages.train import open_chain, sft_settings
from mathtune.store import Artifact
from mathtune.workspace import Workspace, new_execution

SAMPLE_ROWS = 500
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Step:
    """One line of the plan: a stage, whether it is there, and what is known of it."""

    title: str
    there: bool
    text: str


def show_plan(console: Console, recipe: Recipe) -> None:
    """Prints the plan of a recipe. It waits for no GPU: the engine asks the card what it is, and counts tokens on the CPU."""
    with open_workspace(recipe, "plan-" + new_execution(), no_gpus) as work:
        base = work.engine.run(InspectJob(task=recipe.task, model=recipe.model, prompt=recipe.prompt,
                                          hardware=recipe.hardware, cache=str(work.cache)))
        data, parts = plan_data(work)
        if parts:
            open_chain(work, base, parts)
        entries = work.chain.entries()
        rejected = {link.title: link for link in work.chain.rejected()}
        steps = data + (plan_links(recipe, parts.facts["pool"], entries, rejected) if parts else [])
        tokens = measure(work, base, parts) if parts else None
    table = Table(title=f"plan of {recipe.name}", title_justify="left")
    for column in ("stage", "", "what is known"):
        table.add_column(column)
    for step in steps:
        table.add_row(step.title.replace("[", "\\["), "[cyan]there[/]" if step.there else "to do", step.text)
    console.print(table)
    for line in [base_line(base), memory_line(base, recipe.model),
                 *token_lines(recipe, tokens, entries, parts)]:
        console.print(line, highlight=False, soft_wrap=True)


def plan_data(work: Workspace) -> tuple[list[Step], Artifact | None]:
    """The data stages as far as their keys are known without computing; the split's artifact if it is there."""
    recipe = work.recipe
    raw = work.artifacts.find("download", stage_key(
        "download", identity=source_identity(pin_source(recipe.source), recipe.task), task=recipe.task))
    names = ["balance", "split", "leaks"] if recipe.balance else ["split", "leaks"]
    if raw is None:
        return [Step(name, False, "") for name in ("download", *names)], None
    steps = [Step("download", True, f"{raw.facts['rows']:,} rows, {raw.facts['test_rows']:,} test rows")]
    rows_digest = raw.files["train.parquet"]
    if recipe.balance:
        balanced = work.artifacts.find("balance", stage_key(
            "balance", rows=rows_digest, settings=recipe.balance.model_dump(mode="json")))
        if balanced is None:
            return [*steps, *(Step(name, False, "") for name in names)], None
        steps.append(Step("balance", True, f"{sum(balanced.facts['kept'].values()):,} rows"))
        rows_digest = balanced.files["balanced.parquet"]
    parts = work.artifacts.find("split", stage_key(
        "split", rows=rows_digest, settings=recipe.validation.model_dump(mode="json"), task=recipe.task))
    text = f"{parts.facts['validation']:,} validation rows, pool of {parts.facts['pool']:,}" if parts else ""
    found = work.artifacts.find("leaks", leaks_key(recipe, raw, parts)) if parts else None
    return [*steps, Step("split", parts is not None, text),
            Step("leaks", found is not None, summary(found.facts) if found else "")], parts


def plan_links(recipe: Recipe, pool_rows: int, entries: list[Entry], rejected: dict[str, Link]) -> list[Step]:
    """The chunks and the refinement, each with whether the chain holds it, or a person has to decide about it first."""
    done = {entry.link.range: entry for entry in entries}
    steps = []
    for wanted in chunk_ranges(recipe.chunks, pool_rows):
        entry = done.get(wanted)
        text = (trained_text(recipe, wanted, entry) if entry
                else "rejected as worse than its parent: --accept or --skip" if f"sft{wanted}" in rejected
                else f"{len(wanted):,} rows")
        steps.append(Step(f"train-chunk{wanted}", entry is not None, text))
    if recipe.grpo:
        refined = next((entry for entry in entries if entry.link.kind == "grpo"), None)
        steps.append(Step("grpo", refined is not None, f"{recipe.grpo.max_steps} steps of {recipe.grpo.prompts_per_step} "
                          f"prompts, {recipe.grpo.generations} completions each"))
    return steps


def trained_text(recipe: Recipe, wanted: Range, entry: Entry) -> str:
    """What is known of a range's link, and whether this recipe would be refused it."""
    link = entry.link
    settings = {name: value for name, value in link.decided_by.items() if name != "rows"}
    different = disagreements(settings, sft_settings(recipe, wanted))
    refused = f"; by another recipe ({', '.join(different)}): run refuses it, chain=NEW" if different else ""
    return f"link {link.number}, {entry.verdict}, {link.result['seconds']:.0f} s{refused}"


def scoring_line(recipe: Recipe, ranges: list[Range], validation: int) -> str:
    """Rows that base and links are asked about."""
    links, rows = len(ranges) + (recipe.grpo is not None), min(recipe.evaluation.rows or validation, validation)
    probes = [min(probe_rows(recipe), len(chunk)) for chunk in ranges]
    asked = sum(sum(probes[:i]) for i in range(1, links + 1)) if links > 1 else 0  # every link about all chunks before it
    again = f"; {asked:,} rows of chunks asked again (evaluation.probe_rows)" if asked else ""
    return f"scoring   base and {links} link{'s' if links > 1 else ''} on {rows:,} validation rows{again}"


def measure(work: Workspace, base: dict[str, Any], parts: Artifact) -> dict[str, Any]:
    """Tokens of a sample of the pool."""
    recipe = work.recipe
    return work.engine.run(MeasureJob(
        task=recipe.task, model=pinned_model(recipe, base), prompt=recipe.prompt, lora=recipe.lora, hardware=recipe.hardware,
        examples_per_step=recipe.sft.examples_per_step, cache=str(work.cache), rows=str(parts.path("pool.parquet")),
        sample=SAMPLE_ROWS))


def base_line(base: dict[str, Any]) -> str:
    size = f"{base['parameters'] / 1e6:,.1f} M parameters"
    return f"base      {size}, {base['dtype']} on {base['device']} ({base['dtype_reason']})"


def memory_line(base: dict[str, Any], model: Model) -> str:
    """Memory of the weights; what training takes beside them is in the plan of a step."""
    width = NF4_BYTES if model.quantization == "nf4" else DTYPE_BYTES[base["dtype"]]
    others = base["parameters"] - base["linear_parameters"]
    weights = base["linear_parameters"] * width + others * DTYPE_BYTES[base["dtype"]]
    return f"memory    weights {weights / 2**20:,.1f} MiB ({model.quantization})"


def token_lines(recipe: Recipe, tokens: dict[str, Any] | None, entries: list[Entry], parts: Artifact | None) -> list[str]:
    """Tokens an example, how a step is laid on this machine, and the time that this chain's own speed lets expect."""
    if tokens is None or parts is None:
        return ["tokens    known once the data stages are done"]
    ranges = chunk_ranges(recipe.chunks, parts.facts["pool"])
    left = sum(len(wanted) for wanted in ranges if wanted not in {entry.link.range for entry in entries})
    lines = [f"tokens    {tokens['mean']:.0f} an example, 95% below {tokens['p95']:.0f}, longest {tokens['longest']} of "
             f"{tokens['rows']} looked at; {tokens['over_limit']:.1%} over model.max_length={recipe.model.max_length}",
             f"step      {recipe.sft.examples_per_step} examples: {tokens['plan']}"]
    lines.append(scoring_line(recipe, ranges, parts.facts["validation"]))
    trained = [entry.link for entry in entries if entry.link.kind == "sft"]
    if left and trained:
        speed = sum(link.result["examples"] for link in trained) / sum(link.result["seconds"] for link in trained)
        seconds = left / speed
        lasts = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        lines.append(f"time      about {lasts} for {left:,} rows, at this chain's {speed:,.1f} rows/s so far")
    elif left:
        lines.append(f"time      {left:,} rows, about {left * tokens['mean']:,.0f} tokens; known after the first chunk")
    return lines
