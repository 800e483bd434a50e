"""Tables of what speed.py measured: medians of every engine, and numgemma against the others, round by round."""

from statistics import median

from engines import OURS, PEERS
from targets import LIMITS, TARGETS, target_of, verdict

UNITS = {"decode": "tokens/s", "prefill": "tokens/s", "start": "s", "memory": "GB", "record": "x"}
LESS = ("start", "memory")  # the less the better


def show(found, markdown=False):
    """Prints where it was measured, what was left out, and the tables of each checkpoint."""
    about = dict(found["machine"])
    about |= about.pop("versions")
    print("; ".join(f"{name} {value}" for name, value in about.items()))
    for line in found["left out"]:
        print(f"left out: {line}")
    by = gathered(found["samples"])
    for shape in dict.fromkeys(shape for shape, _, _ in by):
        print(f"\n{'### ' if markdown else ''}{shape}")
        for rows in (medians(by, shape), ratios(by, shape)):
            print()
            table(list(rows), markdown)


def gathered(samples):
    """(shape, quantity, engine) -> {round: value}"""
    by: dict = {}
    for s in samples:
        by.setdefault((s["shape"], s["what"], s["engine"]), {})[s["round"]] = s["value"]
    return by


def medians(by, shape):
    """Rows: what was measured, and the median of each engine."""
    whats = dict.fromkeys(what for s, what, _ in by if s == shape)
    engines = [name for name in (*OURS, *PEERS) if any((shape, what, name) in by for what in whats)]
    yield ["median", "", *engines]
    for what in whats:
        values = [by.get((shape, what, name), {}).values() for name in engines]
        unit = "" if ": " in what else UNITS.get(what.split("-")[0], "")  # a share has none
        yield [what, unit, *map(middle, values)]


def middle(values):
    """The median; of names the last."""
    values = list(values)
    if not values or isinstance(values[0], str):
        return values[-1] if values else ""
    return f"{median(values):.4g}"


def ratios(by, shape):
    """Rows: numgemma against each peer and each target."""
    yield ["numgemma", "what", "against", "median", "spread", "target", "stretch", "reached"]
    for s, what, ours in by:
        aimed = [t.against for t in TARGETS if (t.what, t.ours) == (what, ours) and shape in t.shapes]
        peers = [name for name in PEERS if name in aimed or alike(ours, name)]
        for against in [*peers, *(name for name in aimed if name not in peers)] if s == shape else []:
            values = comparison(by, shape, what, ours, against)
            if values:
                yield row(what, ours, against, values, target_of(shape, what, ours, against))


def alike(ours, peer):
    """Whether two engines are compared although no target asks for it: our default with all, the others in kind."""
    return ours == OURS[0] or (ours in OURS and ours.split("-")[1] == peer.split("-")[1])


def row(what, ours, against, values, target):
    m = median(values)
    bounds = ["", ""] if target is None else [target.target, target.stretch or ""]
    if target and target.most:
        bounds = [f"<= {bound}" if bound else "" for bound in bounds]
    return [ours, what, against, f"{m:.2f}", f"{min(values):.2f}..{max(values):.2f}", *bounds, verdict(target, m)]


def comparison(by, shape, what, ours, against):
    """One number per round: how many times better than a peer, or what a target without a peer is about."""
    mine = by[shape, what, ours]
    if against == "":
        return list(mine.values())
    if against in LIMITS:  # its share
        return list(by.get((shape, f"{what}: {against}", ours), {}).values())
    theirs = by.get((shape, against, ours)) or by.get((shape, what, against), {})
    both = [(mine[n], theirs[n]) for n in mine if n in theirs]
    if against in (*PEERS, *OURS) and not what.startswith(LESS):
        return [a / b for a, b in both]
    return [b / a for a, b in both]  # of time and memory; and of two speeds of our own: cost per token


def table(rows, markdown=False):
    """Prints rows in columns; the first row names them."""
    rows = [[str(cell) for cell in row] for row in rows]
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
