"""How the commands of this folder end: as ``mathtune`` does, an error in its own words and the exit status of its kind."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from mathtune.errors import MathtuneError


def run_command(command: Callable[[], None]) -> None:
    """Runs a command's ``main``."""
    try:
        command()
    except MathtuneError as error:
        text = Text.assemble(("✗ ", "red"), (f"{type(error).__name__} ", "bold"), str(error))
        Console(stderr=True).print(text, soft_wrap=True)
        sys.exit(error.exit_status)
