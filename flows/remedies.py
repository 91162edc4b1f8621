"""Commands that errors and checks name as remedies, and how an error is told. Imports no Prefect: a command starts with it."""

from rich.text import Text

from mathtune.errors import MathtuneError

BOOTSTRAP = "python -m deployments.bootstrap"
SERVER = "python -m deployments.server"
SERVER_REMEDY = f"{SERVER}, or unset PREFECT_API_URL"
LOGIN_REMEDY = "export PREFECT_API_AUTH_STRING=user:password, its PREFECT_SERVER_API_AUTH_STRING"


def error_text(error: MathtuneError) -> Text:
    """An error for the terminal: its kind, what happened, where, and what to do."""
    return Text.assemble(("✗ ", "red"), (f"{type(error).__name__} ", "bold"), str(error))
