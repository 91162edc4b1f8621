"""mathtune: fine-tune a language model for maths, chunk by chunk, without ever losing work.

This package is the domain and the compute plane. It never imports prefect, so every job can be run
again by hand on a machine that has none (``python -m mathtune.engine --job job.json``).
"""

__version__ = "0.2.0"
