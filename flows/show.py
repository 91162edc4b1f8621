"""Tables of a chain and of a run for the terminal."""

from typing import Any

from rich.console import Console, Group
from rich.text import Text

from flows.fitting import Cell, Column, FittingTable
from mathtune.chain import Chain, Link, chain_names
from mathtune.errors import ChainError, Damaged

ACCURACY = ("accuracy", "(95% interval)")


def result_table(record: dict[str, Any]) -> Group:
    """Accuracy of the base and of every evaluated link, each with its interval; what is known of the test rows below."""
    columns = [Column("link"), Column("rows", right=True), Column(ACCURACY, right=True),
               Column(("against the", "one before"), right=True)]
    links = [link for link in record["links"] if link["metrics"]]
    rows: list[list[Cell]] = [["base", "", _accuracy(record["base"]), ""]] if record["base"] else []
    for link in links:
        title = f"[{link['start']}:{link['end']})" if link["start"] is not None else ""
        rows.append([f"{link['number']} {link['kind']}", title, _accuracy(link["metrics"]), _comparison(link["versus_parent"])])
    scored = [metrics["accuracy"]["n"] for metrics in (record["base"], *(link["metrics"] for link in links)) if metrics]
    count = f"{scored[-1]:,} " if scored else ""
    return Group(FittingTable(f"{record['name']} on the {count}validation rows", columns, rows), *submission_lines(record))


def submission_lines(record: dict[str, Any]) -> list[Text]:
    """Which link the predictions are from, where that is not the head, and how many are right, where that is known."""
    lines, submission = [], record["submission"]
    if submission and submission["link"] != (head := record["links"][-1]["number"]):
        what = "submission" if record["task"] == "verifier" else "predictions"
        lines.append(Text(f"{what:<12}from link {submission['link']}, not the head ({head})"))
    if submission and (accuracy := submission.get("accuracy")):
        lines.append(Text(f"test rows   {accuracy['value']:.1%} right of {accuracy['n']:,} "
                          f"({accuracy['low']:.1%} to {accuracy['high']:.1%})"))
    return lines


def chain_table(console: Console, chain: Chain) -> None:
    """Prints a chain's links.

    Raises:
        ChainError: there is no such chain.
    """
    if chain.pins() is None and not chain.rejected():
        others = chain_names(chain.folders)
        raise ChainError("there is no such chain", where=f"{chain.folders.url}/{chain.name}",
                         remedy=f"there are: {', '.join(others)}" if others else "mathtune run RECIPE makes one")
    columns = [Column("link"), Column("rows"), Column("steps", spare=2), Column("loss or reward", spare=1), Column(ACCURACY),
               Column("adapter", spare=3), Column("verdict")]
    judged: list[tuple[Link, Cell]] = [(entry.link, tuple(entry.verdict.split(" ", 1))) for entry in chain.entries()]
    judged += [(link, ("rejected:", "--accept or --skip")) for link in chain.rejected()]
    console.print(FittingTable(f"chain {chain.name}", columns, [link_row(chain, link, verdict) for link, verdict in judged]))


def link_row(chain: Chain, link: Link, verdict: Cell) -> list[Cell]:
    """The cells of ``chain_table``."""
    steps, figure = link.result["curve"]["steps"], "reward" if link.kind == "grpo" else "loss"
    metrics = chain.record(link).get("metrics")
    return [f"{link.number} {link.kind}", str(link.range or ""), str(link.result["steps"]),
            f"{steps[0][figure]:.3f} → {steps[-1][figure]:.3f}", _accuracy(metrics) if metrics else "", link.adapter_digest[:8],
            Text("damaged", "red") if is_damaged(chain, link) else verdict]


def is_damaged(chain: Chain, link: Link) -> bool:
    """Whether a link on this machine is; links in an object store are not fetched to be looked at."""
    try:
        if chain.folders.cache is None:
            chain.adapter(link)
    except Damaged:
        return True
    return False


def _accuracy(metrics: dict[str, Any]) -> tuple[str, str]:
    accuracy = metrics["accuracy"]
    return f"{accuracy['value']:.1%}", f"({accuracy['low']:.1%} to {accuracy['high']:.1%})"


def _comparison(versus: dict[str, Any] | None) -> Cell:
    if versus is None:
        return ""
    p = "< 0.001" if versus["p"] < 0.001 else f"{versus['p']:.3f}"
    return f"{versus['difference']['value'] * 100:+.1f} points,", f"p {p}"
