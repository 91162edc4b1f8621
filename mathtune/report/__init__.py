"""The report of a run: one HTML file, pictures inside, that needs no network; the same pictures for Prefect and W&B."""

from mathtune.report.build import build_report

__all__ = ["build_report"]
