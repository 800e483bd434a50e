"""What a notebook shows of a result: a table, every text in it escaped; and rows for `pandas.DataFrame`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MOST = 40  # rows; of longer tables both ends are shown


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as HTML.  title: a sentence above it"""
    shown = list(rows)
    if len(shown) > MOST:
        left = f"{len(shown) - MOST} more"
        shown = [*shown[: MOST // 2], [left, *[""] * (len(head) - 1)], *shown[-MOST // 2 :]]
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in shown]
    return f"<p>{escape(title)}</p>\n<table>\n" + "\n".join(lines) + "\n</table>"


def record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of one row what fits the cell of a table: texts, numbers and None."""
    return {key: value for key, value in row.items() if value is None or isinstance(value, (str, int, float))}
