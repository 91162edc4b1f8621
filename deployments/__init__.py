"""What a Prefect server needs to run the flows for a team."""
