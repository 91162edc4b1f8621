"""SHA-256 digests of files and plain values. They detect damage, not attackers."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_value(value: Any) -> str:
    """Digest (64 hex characters) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Digest (64 hex characters) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
