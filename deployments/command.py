"""How the commands of this folder end: as ``mathtune`` does, an error in its own words and the exit status of its kind."""

import sys
from collections.abc import Callable

from rich.console import Console

from flows.remedies import error_text
from mathtune.errors import MathtuneError


def run_command(command: Callable[[], None]) -> None:
    """Runs a command's ``main``."""
    try:
        command()
    except MathtuneError as error:
        Console(stderr=True).print(error_text(error), soft_wrap=True)
        sys.exit(error.exit_status)
