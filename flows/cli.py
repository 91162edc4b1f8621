"""The command ``mathtune``. Exit status: 0 done, 2 the user's mistake (recipe, data, range), 1 ours or the machine's."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from flows import execute, show
from flows.remedies import error_text
from mathtune import __version__
from mathtune.chain import Chain
from mathtune.errors import MathtuneError, RecipeError
from mathtune.folders import open_folders
from mathtune.ranges import check_asked
from mathtune.recipe_file import load_recipe
from mathtune.recipe_source import NAME_PATTERN, NAME_RULE

console = Console()
errors = Console(stderr=True)
app = App(name="mathtune", version=__version__, console=console,
          help="Fine-tune a language model for maths, chunk by chunk, without ever losing work. "
         "--debug after any command adds the traceback of an error.")

Overrides = Annotated[str, Parameter(help="key=value, for example sft.learning_rate=1e-4", allow_leading_hyphen=False)]
RecipeFile = Annotated[Path, Parameter(help="the recipe's YAML, for example recipes/demo.yaml")]
SweepFile = Annotated[Path, Parameter(help="the sweep's YAML, for example recipes/demo_sweep.yaml")]
ChainName = Annotated[str, Parameter(help="the recipe's chain; where it names none, the recipe's name")]
First = Annotated[str, Parameter(help="what is compared against: RUN, RUN:2, RUN:base or a run's folder")]
Second = Annotated[str, Parameter(help="what is held against it, likewise")]
LONG = 300  # characters of an error of somebody else's that are still read


@app.command
def run(recipe: RecipeFile, *overrides: Overrides, accept: bool = False, skip: bool = False):
    """Run a recipe from its source to its report. What is there already is served, not computed again.

    Parameters
    ----------
    accept
        take the link that was rejected as worse than its parent.
    skip
        leave its rows out and go on with the next range.
    """
    execute.execute(console, "flows.pipeline:pipeline", load_recipe(recipe, overrides), decision=decided(accept, skip))


@app.command
def train(recipe: RecipeFile, *overrides: Overrides, start: int | None = None, end: int | None = None,
          next_rows: Annotated[int | None, Parameter(name="--next")] = None, allow_gap: bool = False, accept: bool = False,
          skip: bool = False):
    """Train one range of the pool on top of the chain's head.

    Parameters
    ----------
    start
        first row of the range.
    end
        row after its last.
    next_rows
        instead of start and end: so many rows after the last trained one.
    allow_gap
        let the range leave rows out.
    accept
        take the link that was rejected as worse than its parent.
    skip
        leave its rows out and go on with the next range.
    """
    check_asked(start, end, next_rows)
    execute.execute(console, "flows.parts:train_range", load_recipe(recipe, overrides), start=start, end=end, next=next_rows,
                    allow_gap=allow_gap, decision=decided(accept, skip))


@app.command
def evaluate(recipe: RecipeFile, *overrides: Overrides):
    """Score the base and every link of the chain on the fixed validation rows.

    What is scored already is served; nothing is trained.

    For example: mathtune evaluate recipes/demo.yaml evaluation.words_rows=500
    """
    execute.execute(console, "flows.parts:evaluate_chain", load_recipe(recipe, overrides))


@app.command
def submit(recipe: RecipeFile, *overrides: Overrides, link: int | None = None):
    """Write predictions, and for a verifier the submission, from the head or another link.

    Parameters
    ----------
    link
        number of the link; default: the head.
    """
    execute.execute(console, "flows.parts:submit_link", load_recipe(recipe, overrides), link=link)


@app.command
def plan(recipe: RecipeFile, *overrides: Overrides):
    """Show what would run, what is there already, tokens, memory and time.

    For example: mathtune plan recipes/demo.yaml chunks.size=1800
    """
    from flows.plan import show_plan

    show_plan(console, load_recipe(recipe, overrides))


@app.command
def doctor():
    """Check the machine; every ✗ comes with the command that mends it."""
    from flows.doctor import examine

    if not examine(console):
        sys.exit(1)


@app.command
def chain(name: ChainName, *, root: str = ".mathtune", cache: Path = Path(".mathtune")):
    """Show the links of a chain: their rows, accuracy, and whether they were accepted.

    For example: mathtune chain demo-verifier

    Parameters
    ----------
    root
        the recipe's storage.root.
    cache
        the recipe's storage.cache.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise RecipeError(NAME_RULE, where=f"chain {name!r}")
    show.chain_table(console, Chain(open_folders(f"{root}/chains", cache / "chains"), name))


@app.command
def compare(first: First, second: Second, *, runs: Path = Path("runs"), examples: int = 3,
            json: Annotated[Path | None, Parameter(name="--json")] = None):
    """Compare two evaluated links, runs or models on the rows that both were scored on.

    Each is RUN (its last evaluated link), RUN:2 (a link), RUN:base, or a run's folder such as elsewhere/runs/NAME:2. Rows
    are matched by their content; differences are the second's minus the first's.

    For example: mathtune compare demo-verifier:base demo-verifier --examples 5

    Parameters
    ----------
    runs
        the folder of the runs: the recipe's storage.runs.
    examples
        rows gained, and rows lost, to show.
    json
        a file to write the comparison to.
    """
    from flows.compare import show_comparison

    show_comparison(console, first, second, runs, examples, json)


@app.command
def sweep(sweep: SweepFile, *overrides: Overrides, parallel: int = 1, deployment: str | None = None):
    """Run a recipe under several settings, each in a chain of its own on the same rows, and say which differences are real.

    What is done is served: the same command goes on with what is missing, and tries failed trials again. An override holds
    for every trial; name=NEW names the sweep.

    For example: mathtune sweep recipes/demo_sweep.yaml --parallel 2

    Parameters
    ----------
    parallel
        trials at a time on this machine, each on GPUs of its own.
    deployment
        instead: as runs of this Prefect deployment (pipeline/trial), side by side on as many workers as its pool has.
    """
    if parallel < 1:
        raise RecipeError("no trial would ever begin", where=f"--parallel {parallel}", remedy="--parallel 1 or more")
    from flows.sweep import show_sweep
    from mathtune.sweep import load_sweep

    show_sweep(console, load_sweep(sweep, overrides), parallel, deployment)


def decided(accept: bool, skip: bool) -> str | None:
    """The person's decision about a rejected link.

    Raises:
        RecipeError: both were given.
    """
    if accept and skip:
        raise RecipeError("--accept and --skip contradict each other", where="command line", remedy="give one of them")
    return "accept" if accept else "skip" if skip else None


def main() -> None:
    """Entry point of the command."""
    execute.quieten_prefect()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, exit_on_error=False, print_error=True, error_console=errors)
    except CycloptsError:
        sys.exit(2)
    except MathtuneError as error:
        if debug:
            raise
        errors.print(error_text(error), soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        errors.print(Text.assemble(("✗ ", "red"), internal_error(error)), soft_wrap=True)
        sys.exit(1)


def internal_error(error: Exception) -> str:
    """An error that mathtune did not raise on purpose, for people: a long one by its first line."""
    text = str(error)
    if len(text) <= LONG:
        return f"{type(error).__name__}: {text}\n→ --debug shows where"
    first = text.strip().splitlines()[0]
    short = first if len(first) <= LONG else first[:LONG - 1] + "…"
    return f"{type(error).__name__}: {short}\n→ --debug shows the rest"


if __name__ == "__main__":
    main()
