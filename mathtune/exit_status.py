"""Exit statuses of the engine and of a run, by which whoever started it tells what became of it."""

import signal

ORPHANED = 3  # the control plane went away
OUT_OF_MEMORY = 4  # the accelerator's memory may not come back in this process
DEVICE_FAULT = 5  # the accelerator's context is broken; a fresh engine goes on
STOPPED = 6  # a signal asked for it; the last step is saved
SAVED = 75  # of a run: a signal asked for it, and all that was done is saved; EX_TEMPFAIL of sysexits.h: not done, try again
GIVEN_UP = 128 + signal.SIGTERM  # a signal asked for it where nothing could be saved
