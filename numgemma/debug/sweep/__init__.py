"""Many prompts with many checkpoints and engines: a row for each pair, and what all rows say together.

In reading order:

    prompts  texts, ids and chats from a file, or random ids
    pair     what is run of one prompt: its rows
    ledger   the file of rows: each written once, whatever is killed
    cluster  who runs: Dask's workers, which are processes
    trends   all rows together: what drifts, which prompts are worst, what fails first
    page     the same as a page
    order    what is asked of a sweep, and the run
"""

from numgemma.debug.sweep.order import Order, sweep
from numgemma.debug.sweep.trends import Trends

__all__ = ["Order", "Trends", "sweep"]
