"""A comparison as one page that needs nothing else, and its pictures as PNG files."""

from numgemma.debug.report.page import to_html, write_html
from numgemma.debug.report.png import write_png
from numgemma.debug.report.subject import Subject

__all__ = ["Subject", "to_html", "write_html", "write_png"]
