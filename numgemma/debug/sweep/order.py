"""A sweep: every prompt with every checkpoint and engine, from where the file of rows ends."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from numgemma.debug.readers import read_any
from numgemma.debug.sweep.cluster import client_of, everywhere, here
from numgemma.debug.sweep.ledger import Ledger
from numgemma.debug.sweep.pair import HF, Seat, Way, Work, file_key, key_of, state_of
from numgemma.debug.sweep.prompts import Question
from numgemma.debug.sweep.trends import Trends
from numgemma.errors import InputError
from numgemma.model import PRECISIONS, Model, load
from numgemma.prompt.media import NO_MEDIA

ENGINES = (*PRECISIONS, HF, *(f"{HF}:{dtype}" for dtype in PRECISIONS))


@dataclass(frozen=True)
class Order:
    """What is asked of a sweep.

    questions: None where every engine is a folder of dumps, which say what was run.  engines: a precision of ours, hf,
    hf:bfloat16, or a folder with a dump for each prompt, by its name.  workers: 0 for this process, without Dask.
    """

    checkpoints: list[str]
    engines: list[str]
    questions: list[Question] | None = None
    way: Way = field(default_factory=Way)
    workers: int = 2
    scheduler: str | None = None


def nobody(*words) -> None:
    """Told to no one."""


def sweep(order: Order, out: Path, say: Callable[[str], None] = nobody, told: Callable[[int, int], None] = nobody):
    """Run what has no row in the file `out` yet, and write its rows there.  -> Trends of all pairs of this order

    say(text): called with what a user should know.  told(done, of): called with each row.
    Raises InputError where something that is named is not there.
    """
    for engine in order.engines:
        if engine not in ENGINES and not Path(engine).is_dir():
            raise InputError(f"--engines {engine:.80}: is no folder of dumps, and none of {', '.join(ENGINES)}.")
    with Ledger(out) as ledger:
        works = list(without_twins(all_works(order), say))
        names = {seat.key: work.prompt for work in works for seat in work.seats}
        left = [less for work in works if (less := without(work, ledger.rows)).seats]
        done = sum(key in ledger.rows for key in names)
        if done:
            say(f"{out}: has {done} of {len(names)} pairs already")
        for rows in run_all(order, left, say):
            for row in rows:
                done += ledger.add(row)
                told(done, len(names))
        return Trends.of([ledger.rows[key] | {"prompt": name} for key, name in names.items()])


def run_all(order: Order, works: list[Work], say) -> Iterator[list[dict]]:
    if not works:
        return
    if order.workers == 0 and order.scheduler is None:
        yield from here(works, order.way)
        return
    with client_of(order.workers, order.scheduler) as client:
        yield from everywhere(client, works, order.way, say)


def without(work: Work, rows) -> Work:
    """What is left to do of it."""
    seats = tuple(seat for seat in work.seats if seat.key not in rows)
    return replace(work, seats=seats)


def without_twins(works: Iterable[Work], say) -> Iterator[Work]:
    """Prompts of the same ids are one pair, and so is a checkpoint that is named twice."""
    seen: dict = {}
    twins = 0
    for work in works:
        less = without(work, seen)
        twins += len(work.seats) - len(less.seats)
        seen |= {seat.key: work for seat in work.seats}
        if less.seats:
            yield less
    if twins:
        say(f"{twins} of these pairs are there twice, with the same ids; each is judged once")


def all_works(order: Order) -> Iterator[Work]:
    """Every prompt of every checkpoint."""
    for checkpoint in order.checkpoints:
        model = load(checkpoint)
        state = state_of(model)
        if order.questions is None:
            yield from of_dumps(order, checkpoint, model, state)
            continue
        for question in order.questions:
            ids, media = encoded(question, model, checkpoint)
            seats = tuple(seat_of(engine, question.name, state, ids, media, order) for engine in order.engines)
            yield Work(checkpoint, question.name, tuple(ids), seats, media, state)


def encoded(question: Question, model: Model, checkpoint: str):
    try:
        return question.encoded(model)
    except InputError as error:
        raise InputError(f"prompt {question.name:.60}, with {checkpoint}: {error}") from None


def seat_of(engine: str, name: str, state: str, ids, media, order: Order) -> Seat:
    if engine in ENGINES:
        return Seat(engine, key_of(state, engine, ids, media, order.way))
    path = dump_in(Path(engine), name)
    return Seat(engine, key_of(state, f"{file_key(path)} {order.way.map}", ids, media, order.way), str(path))


def dump_in(folder: Path, name: str) -> Path:
    """The dump of a prompt: a file or a folder that is called as it is, or its number."""
    found = [path for path in sorted(folder.iterdir()) if name in (path.stem, path.stem.lstrip("0"))]
    if len(found) != 1:
        what = f"{len(found)} dumps" if found else "no dump"
        raise InputError(
            f"{folder}: has {what} of prompt {name!r:.60}; call each by its prompt's name, as {name:.40}.npz."
        )
    return found[0]


def of_dumps(order: Order, checkpoint: str, model: Model, state: str) -> Iterator[Work]:
    """The prompts that dumps say they are of."""
    for engine in order.engines:
        if engine in ENGINES:
            raise InputError(f"--engines {engine} needs prompts; give --prompts FILE or --random N.")
        for path in sorted(Path(engine).iterdir()):
            ids = read_any(path, order.way.map, model.outline).meta.get("ids")
            if ids is None:
                raise InputError(f"{path}: does not say which token ids were run; give the prompts with --prompts.")
            key = key_of(state, f"{file_key(path)} {order.way.map}", ids, NO_MEDIA, order.way)
            yield Work(checkpoint, path.stem, tuple(ids), (Seat(engine, key, str(path)),), state=state)
