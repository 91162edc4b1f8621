"""Composition only: the flows that chain the tasks, and the command line that starts them. Never imports torch."""
