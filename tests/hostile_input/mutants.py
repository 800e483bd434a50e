"""What is done to a sound file: to its bytes, to its text, to a value of its JSON.  rng: random.Random, seeded."""

import copy
import json

DEEP = "[" * 5000 + "]" * 5000
ODD = [
    *(0, -1, 1, 2**31, 2**63, 10**25, -(2**63), 1e308, -0.5, 1e-320, float("inf"), float("nan"), 10**400),
    *(
        True,
        False,
        None,
        "",
        "x",
        "\x1b]0;title\x07",
        "a\nb",
        "\ud800",
        "é" * 300,
        "9" * 5000,
        "{i}",
        "../../etc/passwd",
    ),
    *([], {}, [[]], [1, "a"], {"a": {"b": 1}}, [0] * 500, {"": ""}, "x" * 20_000, [[1] * 50] * 50),
]
FRAGMENTS = [
    "A",
    "9",
    "(",
    "((",
    "= (",
    "{1, ",
    " \t",
    ") = {",
    "a-1",
    "\\",
    '"',
    "[",
    "- ",
    "&a ",
    "*a",
    "{{",
    "%}",
    "\x00",
    "\r\n",
]


def mutated_bytes(raw: bytes, rng) -> bytes:
    """Some bytes flipped, cut out, doubled or put in."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(max(1, min(len(raw), rng.choice([16, 256, 1 << 20]))))  # headers more than the rest
        what = rng.randrange(6)
        if what == 0 and raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif what == 1:
            del raw[at:]
        elif what == 2:
            del raw[at : at + rng.randrange(1, 40)]
        elif what == 3:
            raw[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif what == 4:
            raw[at : at + 8] = rng.choice(
                [b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, (2**62).to_bytes(8, "little")]
            )
        else:
            raw += raw[at : at + rng.randrange(1, 4000)]
    return bytes(raw)


def mutated_text(text: str, rng) -> str:
    """A fragment repeated, lines moved, or bytes changed."""
    what = rng.randrange(5)
    lines = text.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines))
    if what == 0:
        return "".join([*lines[:at], rng.choice(FRAGMENTS) * rng.choice([1, 30, 3000, 70_000]), *lines[at:]])
    if what == 1:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)] + rng.choice(FRAGMENTS) + lines[at]
        return "".join(lines)
    if what == 2:
        return "".join(rng.sample(lines, len(lines)))
    if what == 3:
        return "".join(lines[: at + 1])[: -rng.randrange(1, 20)] + str(rng.choice(ODD))
    return mutated_bytes(text.encode(), rng).decode("utf-8", "replace")


def mutated_json(value, rng) -> bytes:
    """The JSON with one to three nodes replaced, removed, renamed or doubled; or with its bytes changed."""
    if rng.randrange(8) == 0:
        return mutated_bytes(json.dumps(value).encode(), rng)
    if rng.randrange(40) == 0:
        return DEEP.encode()
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.choice(list(places(value))[:2000])
        value = changed(value, place, rng)
    return json.dumps(value).encode()


def places(value, path=()):
    """The paths of all nodes below the top."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))
    if not path:
        yield ()


def changed(value, path, rng):
    if not path:
        return value if rng.randrange(4) else rng.choice(ODD)
    above = value
    try:
        for key in path[:-1]:
            above = above[key]
        what, key = rng.randrange(5), path[-1]
        if what == 0:
            del above[key]
        elif what == 1 and isinstance(above, dict):
            above[str(rng.choice(ODD))[:50]] = above.pop(key)
        elif what == 2 and type(above[key]) in (int, float):
            above[key] = above[key] * rng.choice([-1, 2, 1000, 10**9, 10**18]) + rng.choice([-1, 0, 1, 0.5])
        else:
            above[key] = copy.deepcopy(rng.choice(ODD))
    except (KeyError, IndexError, TypeError, OverflowError):
        pass  # an earlier change has taken it away, or made it larger than a float can be
    return value
