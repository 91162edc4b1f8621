"""Composition only: the flows that chain the tasks, and the command line that starts them. Never imports torch."""

import time

BEGAN = time.monotonic()  # of the command `mathtune`: this is the first that it imports
