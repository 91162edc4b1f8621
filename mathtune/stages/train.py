"""The training stages: open the chain, train a range or serve it from the chain, refine by GRPO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mathtune import __version__
from mathtune.chain import Entry, Link, disagreements, link_key
from mathtune.digests import digest_value
from mathtune.errors import ChainError
from mathtune.jobs import GrpoJob, InspectJob, Place, SftJob
from mathtune.locks import Lease, leased
from mathtune.ranges import Range, check_follows, replayed_positions
from mathtune.recipe import Lora, Recipe
from mathtune.stages import Outcome, pinned_model
from mathtune.stages.data import pool_rows
from mathtune.stages.tokens import tokenised
from mathtune.store import Artifact
from mathtune.tokens import FILE
from mathtune.workspace import Workspace


def inspect_base(work: Workspace) -> Outcome:
    """Digests, size and device of the base; stops here if it cannot be used."""
    recipe = work.recipe
    base = work.engine.run(InspectJob(task=recipe.task, model=recipe.model, prompt=recipe.prompt,
                                      hardware=recipe.hardware, cache=str(work.cache)))
    return Outcome(base, False, f"{base['parameters'] / 1e6:,.1f} M parameters, {base['dtype']} on {base['device']}")


def open_chain(work: Workspace, base: dict[str, Any], parts: Artifact) -> list[Link]:
    """The links of the chain, if it pins what the recipe says; a chain that is not there yet has none.

    Raises:
        ChainError: the chain pins something else.
    """
    work.chain.check_pins(chain_pins(work, base, parts))
    work.chain.sweep()
    links = work.chain.links()
    if links:
        work.chain.adapter(links[-1])  # what everything further rests on, every byte checked
    return links


def chain_pins(work: Workspace, base: dict[str, Any], parts: Artifact) -> dict[str, str]:
    """What a chain pins: base, tokenizer, prompt, adapter shape and data."""
    recipe = work.recipe
    return {
        "task": recipe.task, "base": base["base"], "tokenizer": base["tokenizer"],
        "quantization": recipe.model.quantization, "prompt": digest_value(recipe.prompt.model_dump(mode="json")),
        "lora": f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha}, {', '.join(sorted(recipe.lora.targets))}",
        "pool": parts.files["pool.parquet"], "validation": parts.files["validation.parquet"]}


def train_range(work: Workspace, base: dict[str, Any], parts: Artifact, wanted: Range, allow_gap: bool) -> Outcome:
    """The link of a range: served where it is there, else trained on top of the head (and then not in the chain yet).

    Raises:
        RangeError: the range overlaps, skips or repeats.
        ChainError: the range was trained by another recipe, or the chain ends in a GRPO link.
    """
    if served := _placed_range(work, parts, wanted):
        return served
    with leased(work.chain.folders, f"{work.chain.name}/leases", work.emit) as lease:
        return _placed_range(work, parts, wanted) or _train_range(work, base, parts, wanted, allow_gap, lease)


def _placed_range(work: Workspace, parts: Artifact, wanted: Range) -> Outcome | None:
    """The range's link where it has its place in the chain."""
    entries = work.chain.entries()
    done = next((entry for entry in entries if entry.link.range == wanted), None)
    if done is None:
        return None
    rows = range_rows(work, parts, wanted, trained_ranges(entries[:done.link.number - 1]))
    refuse_other_recipe(work, done.link, sft_decisions(work, wanted, rows))
    skipped = ", which was skipped" if done.verdict == "skipped" else ""
    return Outcome(done.link, True, f"link {done.link.number} of the chain{skipped}")


def _train_range(work: Workspace, base: dict[str, Any], parts: Artifact, wanted: Range, allow_gap: bool,
                 lease: Lease) -> Outcome:
    recipe, entries = work.recipe, work.chain.entries()
    check_follows(wanted, [entry.link.range for entry in entries if entry.link.range], recipe.chunks.start, allow_gap)
    parent = next((entry.link for entry in reversed(entries) if entry.accepted), None)
    if parent and parent.kind == "grpo":
        raise ChainError("the chain ends in a GRPO link, which changed the adapter's shape", where=f"chain {work.chain.name}",
                         remedy="train further ranges in another chain: chain=NEW")
    rows = range_rows(work, parts, wanted, trained_ranges(entries))
    decided_by = sft_decisions(work, wanted, rows)
    key, number = link_key(parent, "sft", decided_by), len(entries) + 1

    def train(folder: Path) -> Link:
        tokens = tokenised(work, base, rows, "rows.parquet")
        job = SftJob(task=recipe.task, model=pinned_model(recipe, base), prompt=recipe.prompt, lora=recipe.lora, sft=recipe.sft,
                     hardware=recipe.hardware, tracking=recipe.tracking, title=f"{recipe.name} {wanted}",
                     cache=str(work.cache), tokens=str(tokens.path(FILE)),
                     validation_tokens=validation_tokens(work, base, parts),
                     start_adapter=str(work.chain.adapter(parent)) if parent else None,
                     checkpoints=checkpoint_place(work, key), output=str(folder))
        result = {**tokens.facts, **work.engine.run(job)}
        return new_link(base, number, parent, "sft", key, decided_by, recipe.lora, result, wanted)

    return make_link(work, lease, number, f"sft{wanted}", key, train)


def refine(work: Workspace, base: dict[str, Any], parts: Artifact) -> Outcome:
    """The GRPO link on top of the chain's last SFT link: served where it is there."""
    if served := _placed_refinement(work, parts):
        return served
    with leased(work.chain.folders, f"{work.chain.name}/leases", work.emit) as lease:
        return _placed_refinement(work, parts) or _refine(work, base, parts, lease)


def _placed_refinement(work: Workspace, parts: Artifact) -> Outcome | None:
    entries = work.chain.entries()
    done = next((entry for entry in entries if entry.link.kind == "grpo"), None)
    if done is None:
        return None
    rows = prompt_rows(work, parts, trained_ranges(entries[:done.link.number - 1]))
    refuse_other_recipe(work, done.link, grpo_decisions(work, rows))
    return Outcome(done.link, True, f"link {done.link.number} of the chain")


def _refine(work: Workspace, base: dict[str, Any], parts: Artifact, lease: Lease) -> Outcome:
    recipe, entries = work.recipe, work.chain.entries()
    parent = next((entry.link for entry in reversed(entries) if entry.accepted), None)
    if parent is None:
        raise nothing_accepted(work)
    rows = prompt_rows(work, parts, trained_ranges(entries))
    decided_by = grpo_decisions(work, rows)
    key, number = link_key(parent, "grpo", decided_by), len(entries) + 1

    def train(folder: Path) -> Link:
        job = GrpoJob(model=pinned_model(recipe, base), prompt=recipe.prompt, lora=recipe.lora, grpo=recipe.grpo,
                      hardware=recipe.hardware, tracking=recipe.tracking, title=f"{recipe.name} grpo", cache=str(work.cache),
                      rows=str(rows.path("rows.parquet")), start_adapter=str(work.chain.adapter(parent)),
                      checkpoints=checkpoint_place(work, key), output=str(folder))
        result = work.engine.run(job)
        lora = recipe.lora.model_copy(update={"alpha": result["alpha"], "targets": tuple(result["targets"])})
        return new_link(base, number, parent, "grpo", key, decided_by, lora, result, None)

    return make_link(work, lease, number, "grpo", key, train)


def nothing_accepted(work: Workspace) -> ChainError:
    """What to say where every link was skipped."""
    return ChainError("every link of the chain was skipped: there is nothing to go on from", where=f"chain {work.chain.name}",
                      remedy="train a further range, or another recipe with chain=NEW")


def make_link(work: Workspace, lease: Lease, number: int, title: str, key: str, train: Callable[[Path], Link]) -> Outcome:
    """A link that was published before and not judged, or a new one, published only while the lease is ours."""
    if found := work.chain.candidate(number, title, key):
        return Outcome(found, True, f"trained before; {training_summary(found)}")

    def train_leased(folder: Path) -> Link:
        link = train(folder)
        lease.check()
        return link

    link = work.chain.publish(number, title, key, train_leased)
    return Outcome(link, False, training_summary(link))


def checkpoint_place(work: Workspace, key: str) -> Place:
    """Where the engine keeps the checkpoints of a link."""
    return Place.within(work.chain.folders, work.chain.checkpoints(key))


def trained_ranges(entries: list[Entry]) -> list[Range]:
    """The ranges of the links that later ones grew from."""
    return [entry.link.range for entry in entries if entry.link.range and entry.accepted]


def range_rows(work: Workspace, parts: Artifact, wanted: Range, trained: list[Range]) -> Artifact:
    """A range's rows, followed by those of earlier ranges that it replays."""
    replayed = replayed_positions(wanted, trained, work.recipe.chunks.replay, work.recipe.sft.seed)
    return pool_rows(work, parts, np.concatenate([np.arange(wanted.start, wanted.end), replayed]))


def validation_tokens(work: Workspace, base: dict[str, Any], parts: Artifact) -> str | None:
    """The file of the validation rows' token ids, where the recipe evaluates on the way."""
    sft = work.recipe.sft
    if sft.evaluate_every is None:
        return None
    return str(tokenised(work, base, parts, "validation.parquet", sft.evaluate_rows).path(FILE))


def prompt_rows(work: Workspace, parts: Artifact, trained: list[Range]) -> Artifact:
    """The rows whose questions GRPO asks."""
    return pool_rows(work, parts, prompt_positions(trained, work.recipe.grpo.prompts, work.recipe.grpo.seed))


def prompt_positions(trained: list[Range], count: int, seed: int) -> np.ndarray:
    """Sorted pool positions (int64) of the rows whose questions GRPO asks, drawn from what the chain has trained."""
    positions = np.concatenate([np.arange(done.start, done.end) for done in trained])
    random = np.random.Generator(np.random.Philox(seed))
    return np.sort(random.choice(positions, size=min(count, len(positions)), replace=False))


SILENT = {"save_every", "save_minutes", "max_loss_jump"}  # they change nothing in the adapter


def sft_decisions(work: Workspace, wanted: Range, rows: Artifact) -> dict[str, Any]:
    """All that decides an SFT link besides its parent and the chain's pins."""
    return {"rows": rows.files["rows.parquet"], **sft_settings(work.recipe, wanted)}


def sft_settings(recipe: Recipe, wanted: Range) -> dict[str, Any]:
    """What the recipe alone decides of a link. How often it is evaluated changes nothing, unless the best step is kept."""
    silent = SILENT | (set() if recipe.sft.keep_best else {"evaluate_every", "evaluate_rows"})
    return {"start": wanted.start, "end": wanted.end, "sft": recipe.sft.model_dump(mode="json", exclude=silent),
            "dropout": recipe.lora.dropout, "max_length": recipe.model.max_length, "overlong": recipe.model.overlong,
            "dtype": recipe.model.dtype}


def grpo_decisions(work: Workspace, rows: Artifact) -> dict[str, Any]:
    """All that decides a GRPO link besides its parent and the chain's pins."""
    recipe = work.recipe
    return {"rows": rows.files["rows.parquet"], "grpo": recipe.grpo.model_dump(mode="json", exclude=SILENT),
            "max_length": recipe.model.max_length, "dtype": recipe.model.dtype}


def refuse_other_recipe(work: Workspace, link: Link, decided_by: dict[str, Any]) -> None:
    """Holds that a link in the chain is the one that this recipe would train."""
    different = disagreements(link.decided_by, decided_by)
    if different:
        raise ChainError(f"{link.title} was trained with another recipe: {', '.join(different)}",
                         where=f"chain {work.chain.name}, link {link.number}",
                         remedy="what is in a chain is never changed: go back to that recipe, or chain=NEW")


def new_link(base: dict[str, Any], number: int, parent: Link | None, kind: str, key: str, decided_by: dict[str, Any],
             lora: Lora, result: dict[str, Any], wanted: Range | None) -> Link:
    """The link that an engine's result describes."""
    return Link(number=number, kind=kind, key=key, parent=parent.key if parent else "",
                start=wanted.start if wanted else None, end=wanted.end if wanted else None,
                adapter_digest=result["adapter_digest"], decided_by=decided_by, lora=lora.model_dump(mode="json"),
                result=result, versions={"mathtune": __version__, **base["versions"]})


def training_summary(link: Link) -> str:
    """Steps, first and last loss (or reward), seconds, for SFT the real tokens a second, a GPU's peak memory."""
    steps, seconds = link.result["curve"]["steps"], link.result["seconds"]
    figure = "reward" if link.kind == "grpo" else "loss"
    speed = f", {steps[-1]['tokens'] / seconds:,.0f} tokens/s" if link.kind == "sft" else ""
    peak = f", peak {link.result['peak_gib']:.1f} GiB" if link.result.get("peak_gib") else ""
    return (f"{link.result['steps']} steps, {figure} {steps[0][figure]:.3f} → {steps[-1][figure]:.3f}, {seconds:.0f} s"
            f"{speed}{peak}")
