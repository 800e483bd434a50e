"""`python -m numgemma`, and the command `numgemma`: what happens before and after a line of ours can answer Ctrl-C."""

import signal
import sys


def main() -> int:
    """Import the command line and run it; returns the exit code.

    While it is imported, and once it is done, Ctrl-C ends the program as it ends any other: an import that is
    interrupted half-way could end in anything but a sentence.
    """
    answered = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from numgemma.cli import main as command
    from numgemma.cli import memory

    memory.ours = True
    try:
        signal.signal(signal.SIGINT, answered)
        code = command()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # between two lines of `command` that answer it
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
