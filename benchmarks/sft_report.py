"""The figures of benchmarks/sft_speed.py: from what the children measured to a table and a picture. Imports no torch."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_line

FLOP = 4  # a frozen parameter and token: a product and a sum forward, and again for the gradient of the input


def floor_tokens_per_second(linear_parameters: int, flop_per_second: float) -> float:
    """Tokens that the frozen linear layers alone would let through in a second, at the rate of a large product.

    Left out as small: attention itself, LoRA's products, the LM head, which is needed only where labels are.
    """
    return flop_per_second / (FLOP * linear_parameters)


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def figures_of(measured: dict[str, Any], warmup: int, per_step: int, floor: float) -> dict[str, Any]:
    """A system's figures of the timed steps; every example's tokens count once, however they are computed, padding never.

    Args:
        measured: what the child wrote, with status ok.
        warmup: steps that are not timed.
        per_step: examples of a step.
        floor: tokens/s of the floor.
    """
    seconds, tokens = measured["step_seconds"], measured["step_tokens"]
    rates = [count / second for count, second in zip(tokens[warmup:], seconds[warmup:], strict=True)]
    raw = ("step_seconds", "step_tokens", "losses", "tokens_seen")
    kept = {name: value for name, value in measured.items() if name not in raw}
    return {**kept, "tokens_per_second": spread(rates),
            "examples_per_second": spread([per_step / second for second in seconds[warmup:]]),
            "step_seconds": spread(seconds[warmup:]), "all_step_seconds": seconds, "first_step_seconds": seconds[0],
            "fraction_of_floor": statistics.median(rates) / floor, "tokens": sum(tokens), "first_loss": measured["losses"][0],
            "tokens_as_the_trainer_counts": (measured["tokens_seen"] or [None])[-1]}


def ratios(systems: list[dict[str, Any]], to: str) -> None:
    """Gives every system that ran its tokens/s as a multiple of the named one's, where that ran."""
    by_name = {system["system"]: system for system in systems}
    if by_name.get(to, {}).get("status") != "ok":
        return
    reference = by_name[to]["tokens_per_second"]["median"]
    for system in systems:
        if system["status"] == "ok":
            system["ratio"] = system["tokens_per_second"]["median"] / reference


def as_markdown(results: dict[str, Any]) -> str:
    """The results as a page with one table."""
    examples, rate = results["examples"], results["rate"]
    reference = results["reference"]
    lines = [f"# SFT speed: {results['shape']}", "", f"`{results['command']}`: QLoRA (NF4, rank 16, all seven projections), "
             f"{examples['mean']:.0f} tokens an example on average (p95 {examples['p95']:.0f}), loss on the label. Tokens are "
             "real ones: each example's once, no padding, the shared prefix in every example. Median of "
             f"{results['timed']} steps after {results['warmup']} of warm-up, lowest and highest in brackets.", "",
             f"| system | examples a step (a pass) | tokens/s | examples/s | {reference} x | of the floor | peak GiB | "
             "first step s |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    lines += [_row(system) for system in results["systems"]]
    lines += ["", *(f"- **{system['system']}**: {system['about']}{_notes(system)}" for system in results["systems"]), "",
              f"Floor: {results['floor']:,.0f} tokens/s, {FLOP} FLOP a frozen parameter ({results['linear_parameters']:,}) and "
              f"token at the {rate['flop_per_second'] / 1e12:.4g} TFLOP/s of a product of two {rate['dtype']} matrices of "
              f"{rate['size']} x {rate['size']} on this machine. First step: from the loaded base to the end of the step. "
              f"Peak: {results['memory']}.", "", machine_line(results["machine"])]
    return "\n".join(lines)


def compact(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'system':<24}{'tokens/s':>10}{'lowest':>9}{'highest':>9}{'ex/s':>8}{'ratio':>7}{'floor':>7}{'GiB':>7}"
             f"{'first s':>9}{'loss':>8}"]
    for system in results["systems"]:
        if system["status"] != "ok":
            lines.append(f"{system['system']:<24}{system['status']}: {system['message'][:90]}")
            continue
        rate, ratio = system["tokens_per_second"], f"{system['ratio']:.2f}" if "ratio" in system else "-"
        lines.append(
            f"{system['system']:<24}{rate['median']:>10,.0f}{rate['lowest']:>9,.0f}{rate['highest']:>9,.0f}"
            f"{system['examples_per_second']['median']:>8.1f}{ratio:>7}"
            f"{system['fraction_of_floor']:>7.1%}{system['peak_gib']:>7.1f}{system['first_step_seconds']:>9.1f}"
            f"{system['first_loss']:>8.3f}")
    lines += [""] + [line for system in results["systems"] if (line := _factors(system, results["systems"]))]
    lines.append(f"floor {results['floor']:,.0f} tokens/s at {results['rate']['flop_per_second'] / 1e12:.4g} TFLOP/s; "
                 f"{machine_line(results['machine'])}")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Horizontal bars of tokens/s, the floor as a line, what did not run by its reason."""
    from matplotlib.figure import Figure

    systems = results["systems"]
    ran = [system["tokens_per_second"]["median"] if system["status"] == "ok" else 0 for system in systems]
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(systems)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#2f6fb0" if system["system"].startswith("mathtune") else "#9aa7b4" for system in systems]
    axes.barh([system["system"] for system in systems], ran, color=colours, height=0.62)
    axes.axvline(results["floor"], color="#444444", linestyle="--", linewidth=1)
    axes.text(results["floor"], -0.75, f"floor {results['floor']:,.0f}", ha="right", va="center", fontsize=9, color="#444444")
    room = max(results["floor"], *ran)
    for place, (system, value) in enumerate(zip(systems, ran, strict=True)):
        times = f"   {system['ratio']:.1f} x" if "ratio" in system else ""
        text = f"{value:,.0f}{times}" if system["status"] == "ok" else system["status"]
        inside = value > 0.7 * room
        axes.text(value + (-0.01 if inside else 0.01) * room, place, text, va="center", ha="right" if inside else "left",
                  fontsize=10, color="white" if inside else "#222222")
    axes.set_ylim(len(systems) - 0.5, -1)
    axes.set_xlim(0, 1.02 * room)
    axes.set_xlabel("real tokens a second")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    where = results["machine"].get("gpu") or results["machine"]["cpu"]
    axes.set_title(f"SFT with QLoRA, {results['shape']}, {where}, {results['machine']['date']}", fontsize=11, loc="left")
    figure.savefig(path, dpi=130, facecolor="white")


def _factors(system: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """This project's speed as multiples of the other systems'; empty for those."""
    if system["status"] != "ok" or not system["system"].startswith("mathtune"):
        return ""
    rate = system["tokens_per_second"]["median"]
    return f"{system['system']} is " + ", ".join(
        f"{rate / other['tokens_per_second']['median']:.2f} x {other['system']}" for other in others
        if other["status"] == "ok" and not other["system"].startswith("mathtune"))


def _row(system: dict[str, Any]) -> str:
    passes = system.get("micro_batch") or f"{system.get('pack_tokens', 'planned')} tokens"
    name = f"| {system['system']} | {system['per_step']} ({passes}) |"
    if system["status"] != "ok":
        return f"{name} {system['status']} | | | | | |"
    tokens, examples = system["tokens_per_second"], system["examples_per_second"]
    ratio = f"{system['ratio']:.1f}" if "ratio" in system else ""
    return (f"{name} {tokens['median']:,.0f} ({tokens['lowest']:,.0f} to {tokens['highest']:,.0f}) | "
            f"{examples['median']:.1f} | {ratio} | "
            f"{system['fraction_of_floor']:.0%} | {system['peak_gib']:.1f} | {system['first_step_seconds']:.1f} |")


def _notes(system: dict[str, Any]) -> str:
    if system["status"] != "ok":
        return f". {system['status'].capitalize()}: {system['message']}"
    liger = "; with Liger" if system.get("liger") else ""
    attention = f"; {system['attention']} attention" if "attention" in system else ""
    tried = f"; {', '.join(str(size) for size in system['too_large'])} a pass did not fit" if system.get("too_large") else ""
    counts, tokens = system["tokens_as_the_trainer_counts"], system["tokens"]
    odd = f"; its trainer counts {counts:,} tokens where {tokens:,} were given" if counts not in (None, tokens) else ""
    plan = f"; {system['plan']}" if "plan" in system else ""
    return liger + attention + tried + plan + odd
