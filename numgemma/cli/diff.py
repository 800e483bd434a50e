"""Compare two dumps: say where B first parts from A, and show the telling points.

With --floor every error is judged by what rounding alone makes of that point; without, by a table of tolerances.
"""

import math
from pathlib import Path

from numgemma.cli import seams
from numgemma.cli.common import add_precision
from numgemma.cli.numbers import finite
from numgemma.cli.report import add_report, write_json, write_report, written
from numgemma.debug.blame.emulate import own_arithmetic
from numgemma.debug.compare.diff import diff, render
from numgemma.debug.compare.name_map import NameMap, parse_map
from numgemma.debug.measure.precision import coarser, of_run
from numgemma.debug.noise.floor import beside, cache_path, cached_floor, read_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.debug.readers import read_any, summary
from numgemma.errors import InputError
from numgemma.graph import named
from numgemma.model import load
from numgemma.prompt.media import NO_MEDIA


def add_arguments(parser):
    parser.add_argument("a", type=Path, metavar="A", help="the reference dump")
    parser.add_argument("b", type=Path, metavar="B", help="the dump measured against it")
    parser.add_argument("--points", nargs="+", metavar="GLOB", default=["*"], help="compare only these (default: all)")
    parser.add_argument("--all", action="store_true", help="print every point, not a dozen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole comparison as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error against depth")
    add_report(parser)
    parser.add_argument(
        "--floor", nargs="+", metavar="F", default=[], help="floors by `numgemma floor`; auto: that of these dumps"
    )
    parser.add_argument(
        "--ckpt", type=Path, metavar="CKPT", help="for --floor auto: measure it where the cache has none"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="T", help="a third dump, in float64 at best: says which side is off"
    )
    add_precision(parser)
    parser.add_argument("--tolerance", type=finite, metavar="X", help="the relative error to allow without a floor")
    parser.add_argument(
        "--layer-map",
        metavar="MAP",
        help="A's layers and B's, as 18:10,20-22:11-13, or a file with pairs of names; auto: A and B are checkpoints",
    )
    parser.add_argument(
        "--map", type=Path, metavar="FILE", help="names of another engine's dump -> ours, for A or B or both"
    )
    parser.add_argument("--allow-missing", nargs="+", metavar="GLOB", default=[], help="these need not be in both")
    parser.add_argument(
        "--fail-on",
        choices=("point", "logits", "never"),
        default="point",
        help="what makes the exit code 1 (or 4): any point, the logits alone, nothing; default: point",
    )


def run(args):
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise InputError(f"--tolerance is {args.tolerance}; it should be 0 or more.")
    if args.layer_map == "auto":
        return seams.from_diff(args)
    model = load(args.ckpt) if args.ckpt else None
    config = model and model.outline
    a, b = (read_any(path, args.map, config) for path in (args.a, args.b))
    if model:
        a, b = (named(dump, model.checkpoint.config) for dump in (a, b))
    b = as_run(b, model, args.precision)
    own = own_arithmetic(model, b, ids_of(a, b), NO_MEDIA, str) if model else None
    found = diff(
        a,
        b,
        args.points,
        tolerance=args.tolerance,
        floor=floors(args, a, b),
        truth=read_any(args.truth, config=config) if args.truth else None,
        mapping=NameMap() if args.layer_map is None else parse_map(args.layer_map),
        allow_missing=args.allow_missing,
    )
    for line in filter(None, (*(summary(dump) for dump in (a, b)), own and own.verdict)):
        print(line)
    print(render(found, args.all))
    if args.json:
        write_json(args.json, found)
    if args.plot and found.points:
        from numgemma.debug.report.depth import plot

        plot(found, args.plot, f"{Path(args.b).name} against {Path(args.a).name}")
        written(args.plot)
    write_report(args, args.ckpt, a, b, found)
    return found.exit_code_for(args.fail_on)


def ids_of(*dumps):
    return next((dump.meta["ids"] for dump in dumps if dump.meta.get("ids") is not None), None)


def floors(args, a, b):
    """The floors that were named, or the one that these dumps need."""
    if args.floor != ["auto"]:
        return [read_floor(path) for path in args.floor]
    precision = coarser(*(of_run(dump) for dump in (a, b)))
    ids = ids_of(a, b)
    if ids is None:
        raise InputError("--floor auto needs the token ids, which neither dump has; measure one with `numgemma floor`.")
    if args.ckpt:
        model = load(args.ckpt)
        return [cached_floor(model, ids, precision, media=model.media_of(a))]
    for dump in (a, b):
        path = cache_path(dump.meta.get("model") or {}, ids, precision, beside(dump.meta))
        if path.exists():
            return [read_floor(path)]
    raise InputError(
        f"--floor auto: no {precision} floor of these dumps is in the cache; add --ckpt CKPT, "
        f"or measure one with `numgemma floor CKPT {args.b}`."
    )
