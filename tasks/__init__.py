"""One thin Prefect task a stage: names, retries, states. The work itself is in ``mathtune.stages``."""
