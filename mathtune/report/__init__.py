"""The report of a run: one HTML file, pictures inside, that needs no script and no network."""

from mathtune.report.build import build_report

__all__ = ["build_report"]
