"""The report of a run: one HTML file, pictures inside, that needs no network; the same pictures for Prefect and W&B."""

import logging

# Without a writable home matplotlib warns of a temporary folder, and on its first run of a font cache: noise here.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
from mathtune.report.build import build_report  # noqa: E402

__all__ = ["build_report"]
