"""Tables of a chain and of a run for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mathtune.chain import Chain, Link, chain_names
from mathtune.errors import ChainError, Damaged


def result_table(record: dict[str, Any]) -> Table:
    """Accuracy of the base and of every evaluated link, each with its interval."""
    table = Table(title=f"{record['name']} on the validation rows", title_justify="left")
    for column in ("link", "rows", "accuracy", "95% interval", "n", "against the one before"):
        table.add_column(column, justify="left" if column == "link" else "right")
    if record["base"]:
        table.add_row("base", "", *_accuracy(record["base"]), "")
    for link in record["links"]:
        if link["metrics"]:
            rows = f"[{link['start']}:{link['end']})" if link["start"] is not None else ""
            table.add_row(f"{link['number']} {link['kind']}", rows.replace("[", "\\["), *_accuracy(link["metrics"]),
                          _comparison(link["versus_parent"]))
    return table


def chain_table(console: Console, chain: Chain) -> None:
    """Prints a chain's links.

    Raises:
        ChainError: there is no such chain.
    """
    if chain.pins() is None and not chain.rejected():
        others = chain_names(chain.folders)
        raise ChainError("there is no such chain", where=f"{chain.folders.url}/{chain.name}",
                         remedy=f"there are: {', '.join(others)}" if others else "mathtune run RECIPE makes one")
    table = Table(title=f"chain {chain.name}", title_justify="left")
    for column in ("link", "rows", "steps", "loss or reward", "accuracy", "adapter", "verdict"):
        table.add_column(column, no_wrap=column != "accuracy")
    judged = [(entry.link, entry.verdict) for entry in chain.entries()]
    for link, verdict in judged + [(link, "rejected: --accept or --skip") for link in chain.rejected()]:
        steps = link.result["curve"]["steps"]
        figure = "reward" if link.kind == "grpo" else "loss"
        metrics = chain.record(link).get("metrics")
        accuracy = "{} ({})".format(*_accuracy(metrics)[:2]) if metrics else ""
        table.add_row(f"{link.number} {link.kind}", str(link.range or "").replace("[", "\\["), str(link.result["steps"]),
                      f"{steps[0][figure]:.3f} → {steps[-1][figure]:.3f}", accuracy, link.adapter_digest[:8],
                      damage(chain, link) or verdict)
    console.print(table)


def damage(chain: Chain, link: Link) -> str | None:
    """"damaged" where a link on this machine is; links in an object store are not fetched to be looked at."""
    try:
        if chain.folders.cache is None:
            chain.adapter(link)
    except Damaged:
        return "[red]damaged[/]"
    return None


def _accuracy(metrics: dict[str, Any]) -> tuple[str, str, str]:
    accuracy = metrics["accuracy"]
    return f"{accuracy['value']:.1%}", f"{accuracy['low']:.1%} to {accuracy['high']:.1%}", f"{accuracy['n']:,}"


def _comparison(versus: dict[str, Any] | None) -> str:
    if versus is None:
        return ""
    p = "< 0.001" if versus["p"] < 0.001 else f"{versus['p']:.3f}"
    return f"{versus['difference']['value'] * 100:+.1f} points, p {p}"
