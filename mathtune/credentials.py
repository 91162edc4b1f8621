"""Passwords and tokens have no place in a recipe: it is copied to the run's folder, to Prefect and to W&B.

Leaves out where they belong (``tasks.deployment``: the environment and Secret blocks).
"""

import re
from collections.abc import Iterator
from typing import Any

from mathtune.errors import RecipeError

CREDENTIALS = r"://[^/\s@]*:[^/\s@]+@|\bhf_[A-Za-z0-9]{30}"  # a password in a URL, or a Hugging Face token


def refuse_credentials(values: dict[str, Any], where: str) -> None:
    """Holds that no text in plain values is, or has in it, a password or token; says none.

    Raises:
        RecipeError: names the keys that do.
    """
    if found := keys_with_credentials(values):
        raise RecipeError(found_text(found), where=where,
                          remedy="export it where the run works (HF_TOKEN, AWS_ACCESS_KEY_ID …), or save it as a Secret block")


def found_text(keys: list[str]) -> str:
    """What is wrong with these keys."""
    return f"a password or token in {', '.join(keys)}, where everybody can read it"


def keys_with_credentials(values: dict[str, Any]) -> list[str]:
    """The keys of plain values, such as ``storage.root``, whose text has a password or token in it."""
    return [key for key, text in _texts(values) if re.search(CREDENTIALS, text)]


def forbid_credentials(schema: Any) -> None:
    """Changes a JSON schema so that every text in it must be without: Prefect's server holds a run's parameters against it
    before it keeps them, in clear."""
    if isinstance(schema, list):
        for one in schema:
            forbid_credentials(one)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and "enum" not in schema:
            schema["not"] = {"pattern": CREDENTIALS}
        for key, one in schema.items():
            if key not in ("default", "not"):
                forbid_credentials(one)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain values, and its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from _texts(one, f"{key}.{place}")
