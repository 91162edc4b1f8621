"""The training stages: open the chain, train a range or serve it from the chain, refine by GRPO."""

from pathlib import Path
from typing import Any

import numpy as np

from mathtune import __version__
from mathtune.chain import Link, disagreements, link_key
from mathtune.digests import digest_value
from mathtune.errors import ChainError
from mathtune.jobs import GrpoJob, InspectJob, SftJob
from mathtune.ranges import Range, check_follows, replayed_positions
from mathtune.recipe import Lora
from mathtune.stages import Outcome, pinned_model
from mathtune.stages.data import pool_rows
from mathtune.store import Artifact
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
    return work.chain.links()


def chain_pins(work: Workspace, base: dict[str, Any], parts: Artifact) -> dict[str, str]:
    """What a chain pins: base, tokenizer, prompt, adapter shape and data."""
    recipe = work.recipe
    return {
        "task": recipe.task, "base": base["base"], "tokenizer": base["tokenizer"],
        "quantization": recipe.model.quantization, "prompt": digest_value(recipe.prompt.model_dump(mode="json")),
        "lora": f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha}, {', '.join(sorted(recipe.lora.targets))}",
        "pool": parts.files["pool.parquet"], "validation": parts.files["validation.parquet"]}


def train_range(work: Workspace, base: dict[str, Any], parts: Artifact, wanted: Range, allow_gap: bool) -> Outcome:
    """The link of a range: served from the chain if it is there, else trained on top of the head.

    Raises:
        RangeError: the range overlaps, skips or repeats.
        ChainError: the range was trained by another recipe, or the chain ends in a GRPO link.
    """
    recipe, links = work.recipe, work.chain.links()
    done = next((link for link in links if link.range == wanted), None)
    before = links[:done.number - 1] if done else links
    trained = [link.range for link in before if link.range]
    replayed = replayed_positions(wanted, trained, recipe.chunks.replay, recipe.sft.seed)
    rows = pool_rows(work, parts, np.concatenate([np.arange(wanted.start, wanted.end), replayed]))
    decided_by = sft_decisions(work, wanted, rows)
    if done:
        refuse_other_recipe(work, done, decided_by)
        return Outcome(done, True, f"link {done.number} of the chain")
    check_follows(wanted, trained, recipe.chunks.start, allow_gap)
    parent = before[-1] if before else None
    if parent and parent.kind == "grpo":
        raise ChainError("the chain ends in a GRPO link, which changed the adapter's shape", where=f"chain {work.chain.name}",
                         remedy="train further ranges in another chain: chain=NEW")
    key = link_key(parent, "sft", decided_by)

    def train(folder: Path) -> Link:
        job = SftJob(task=recipe.task, model=pinned_model(recipe, base), prompt=recipe.prompt, lora=recipe.lora, sft=recipe.sft,
                     hardware=recipe.hardware, tracking=recipe.tracking, title=f"{recipe.name} {wanted}",
                     cache=str(work.cache), rows=str(rows.path("rows.parquet")),
                     validation=str(parts.path("validation.parquet")),
                     start_adapter=str(work.chain.adapter(parent)) if parent else None,
                     checkpoints=str(work.chain.checkpoints(key)), output=str(folder))
        return new_link(work, base, parent, "sft", key, decided_by, recipe.lora, work.engine.run(job), wanted)

    link = work.chain.extend(len(links) + 1, f"sft{wanted}", key, chain_pins(work, base, parts), train)
    return Outcome(link, False, training_summary(link))


def refine(work: Workspace, base: dict[str, Any], parts: Artifact) -> Outcome:
    """The GRPO link on top of the chain's last SFT link: served from the chain if it is there."""
    recipe, links = work.recipe, work.chain.links()
    done = next((link for link in links if link.kind == "grpo"), None)
    before = links[:done.number - 1] if done else links
    drawn = prompt_positions([link.range for link in before], recipe.grpo.prompts, recipe.grpo.seed)
    rows = pool_rows(work, parts, drawn)
    decided_by = {"rows": rows.files["rows.parquet"], "grpo": recipe.grpo.model_dump(mode="json", exclude={"save_every"}),
                  "max_length": recipe.model.max_length, "dtype": recipe.model.dtype}
    if done:
        refuse_other_recipe(work, done, decided_by)
        return Outcome(done, True, f"link {done.number} of the chain")
    parent = before[-1]
    key = link_key(parent, "grpo", decided_by)

    def train(folder: Path) -> Link:
        job = GrpoJob(model=pinned_model(recipe, base), prompt=recipe.prompt, lora=recipe.lora, grpo=recipe.grpo,
                      hardware=recipe.hardware, tracking=recipe.tracking, title=f"{recipe.name} grpo", cache=str(work.cache),
                      rows=str(rows.path("rows.parquet")), start_adapter=str(work.chain.adapter(parent)),
                      checkpoints=str(work.chain.checkpoints(key)), output=str(folder))
        result = work.engine.run(job)
        lora = recipe.lora.model_copy(update={"alpha": result["alpha"], "targets": tuple(result["targets"])})
        return new_link(work, base, parent, "grpo", key, decided_by, lora, result, None)

    link = work.chain.extend(len(links) + 1, "grpo", key, chain_pins(work, base, parts), train)
    return Outcome(link, False, training_summary(link))


def prompt_positions(trained: list[Range], count: int, seed: int) -> np.ndarray:
    """Sorted pool positions (int64) of the rows whose questions GRPO asks, drawn from what the chain has trained."""
    positions = np.concatenate([np.arange(done.start, done.end) for done in trained])
    random = np.random.Generator(np.random.Philox(seed))
    return np.sort(random.choice(positions, size=min(count, len(positions)), replace=False))


def sft_decisions(work: Workspace, wanted: Range, rows: Artifact) -> dict[str, Any]:
    """All that decides an SFT link besides its parent and the chain's pins.

    How often it is saved changes nothing, and how often it is evaluated only under dropout (an evaluation's data loader
    draws from the same random state), unless the best step is kept.
    """
    recipe = work.recipe
    silent = {"save_every"} | (set() if recipe.lora.dropout else {"evaluate_every", "evaluate_rows"})
    silent = set() if recipe.sft.keep_best else silent
    return {"start": wanted.start, "end": wanted.end, "rows": rows.files["rows.parquet"],
            "sft": recipe.sft.model_dump(mode="json", exclude=silent), "dropout": recipe.lora.dropout,
            "max_length": recipe.model.max_length, "overlong": recipe.model.overlong, "dtype": recipe.model.dtype}


def refuse_other_recipe(work: Workspace, link: Link, decided_by: dict[str, Any]) -> None:
    """Holds that a link in the chain is the one that this recipe would train."""
    different = disagreements(link.decided_by, decided_by)
    if different:
        raise ChainError(f"{link.title} was trained with another recipe: {', '.join(different)}",
                         where=f"chain {work.chain.name}, link {link.number}",
                         remedy="what is in a chain is never changed: go back to that recipe, or chain=NEW")


def new_link(work: Workspace, base: dict[str, Any], parent: Link | None, kind: str, key: str, decided_by: dict[str, Any],
             lora: Lora, result: dict[str, Any], wanted: Range | None) -> Link:
    """The link that an engine's result describes."""
    return Link(number=parent.number + 1 if parent else 1, kind=kind, key=key, parent=parent.key if parent else "",
                start=wanted.start if wanted else None, end=wanted.end if wanted else None,
                adapter_digest=result["adapter_digest"], decided_by=decided_by, lora=lora.model_dump(mode="json"),
                result=result, versions={"mathtune": __version__, **base["versions"]})


def training_summary(link: Link) -> str:
    """Steps, first and last loss (or reward) and seconds, for people."""
    steps = link.result["curve"]["steps"]
    figure = "reward" if link.kind == "grpo" else "loss"
    return (f"{link.result['steps']} steps, {figure} {steps[0][figure]:.3f} → {steps[-1][figure]:.3f}, "
            f"{link.result['seconds']:.0f} s")
