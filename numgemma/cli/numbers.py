"""Numbers on the command line: one type for all that are whole, one for all others."""

import argparse
import math
import re

MOST = 2**31


def whole_number(text: str) -> int:
    """A number below 2^31; what is meant otherwise is a slip, and would be work without end."""
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text) or abs(int(text)) >= MOST:
        raise argparse.ArgumentTypeError(f"'{text:.40}' should be a whole number below 2^31")
    return int(text)


def finite(text: str) -> float:
    """A number that is neither infinite nor none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text:.40}' should be a number")
    return value
