"""A comparison as one page that needs nothing else, and its pictures as PNG files.

In reading order:

    chart      what the pictures show, as numbers
    subject    what a report is about
    equations  what a point is: its equation, and its line of source
    glossary   the words of the report
    svg        the pictures of the page
    cards      a card for each bad point
    layer      the layer where it first goes wrong, with what was found at each point
    table      every point, to be sorted and filtered
    page       the page
    depth      error against depth, as `diff --plot` draws it
    png        the pictures as files
"""

from numgemma.debug.report.page import Report, to_html, write_html
from numgemma.debug.report.png import write_png
from numgemma.debug.report.subject import Subject

__all__ = ["Report", "Subject", "to_html", "write_html", "write_png"]
