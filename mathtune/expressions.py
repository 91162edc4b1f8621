"""Whether two expressions are equal, by math-verify; as a program, a process that ``mathtune.grading`` may lose.

The program reads ``[gold, given]`` as JSON, a line each, and answers ``true`` or ``false``. An answer that takes too long ends
it by a signal of the kernel, which also ends C code that never returns to Python, and needs nobody who watches. Ends with its
standard input.
"""

import json
import logging
import os
import resource
import signal
import sys

from mathtune.answers import tidy

READY = "ready"
CPU_SECONDS = 5  # of one comparison; of the processor, so that a busy machine grades as an idle one does
WALL_SECONDS = 60  # whatever it waits for
MEMORY = 2 << 30  # bytes of address space
OUT_OF_MEMORY = 3  # exit status


def same_expression(gold: str, given: str) -> bool:
    """Whether math-verify finds both equal; False where it cannot read one. Without any limit of time.

    Raises:
        MemoryError: there is not enough.
    """
    from math_verify import LatexExtractionConfig, parse, verify  # sympy: 0.3 s and 50 MB that numbers do not need

    sides = [parse(f"${tidy(side).replace('$', '')}$", [LatexExtractionConfig()], parsing_timeout=None)
             for side in (gold, given)]
    return bool(all(sides) and verify(*sides, timeout_seconds=None))


def main() -> None:
    """Answers line by line."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of a missing time limit
    same_expression("x", "y + 0.5")  # imports and first steps, before the limits
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who wait for the answers
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGALRM])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does not answer
    print(READY, file=replies, flush=True)
    cpu, wall = (float(seconds) for seconds in sys.argv[1:])
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu)
        signal.setitimer(signal.ITIMER_REAL, wall)
        try:
            same = same_expression(*json.loads(line))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(same), file=replies, flush=True)


if __name__ == "__main__":
    main()
