"""What one check of ``mathtune doctor`` found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: what it is about, whether it holds, what was seen, and what to do if it does not hold."""

    about: str
    good: bool
    seen: str
    remedy: str = ""
