"""Runs the cells of a page in the browser as a notebook does: one after another, in one namespace.

Read by worker.mjs into Pyodide, which has NumPy, matplotlib and numgemma by then.
"""

import ast
import base64
import io
import json
import linecache
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from itertools import count

NAMES = {"__name__": "__main__"}
NUMBERS = count(1)


def run(source: str) -> str:
    """Run a cell.  -> JSON: a list of {kind: text, html, png or error; data}, in the order in which they are shown."""
    name = f"<cell {next(NUMBERS)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # for tracebacks and `inspect`
    printed, shown = io.StringIO(), []
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            shown += value(computed(source, name))
            shown += figures()
    except BaseException as error:  # a student's program: whatever Python can raise
        shown.append({"kind": "error", "data": told(error, name)})
    text = printed.getvalue()
    return json.dumps(([{"kind": "text", "data": text}] if text else []) + shown)


def computed(source, name):
    """What the last line of a cell is worth; None where it is no expression, or ends in a semicolon."""
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        exec(compile(tree, name, "exec"), NAMES)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), NAMES)
    return eval(compile(ast.Expression(last.value), name, "eval"), NAMES)


def value(x):
    if x is None:
        return []
    if hasattr(x, "_repr_html_"):
        return [{"kind": "html", "data": x._repr_html_()}]
    return [{"kind": "text", "data": f"{x!r}\n"}]


def figures():
    """The figures that a cell has drawn, which are closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return [picture(pyplot, number) for number in (pyplot.get_fignums() if pyplot else [])]


def picture(pyplot, number):
    raw, figure = io.BytesIO(), pyplot.figure(number)
    figure.savefig(raw, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return {"kind": "png", "data": base64.b64encode(raw.getvalue()).decode()}


def told(error, name) -> str:
    """The traceback from the cell's own line on."""
    whole = traceback.TracebackException.from_exception(error)
    first = next((i for i, frame in enumerate(whole.stack) if frame.filename == name), len(whole.stack))
    whole.stack = traceback.StackSummary.from_list(whole.stack[first:])
    return "".join(whole.format())
