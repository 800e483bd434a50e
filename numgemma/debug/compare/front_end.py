"""What went wrong before the model: pixels and mel frames of another preprocessing, named by the arrays alone."""

import numpy as np

SAME = 1e-3  # relative error of what is the same but for rounding
ALIKE = 0.5  # error up to which it is still the same picture
LOG10 = 1 / np.log(10)


def looks(name: str, x: np.ndarray, y: np.ndarray) -> str:
    """What y is in terms of x, the right one; "" where that is not known."""
    if x.shape != y.shape:
        return other_count(name, x, y)
    x, y = (np.asarray(side, np.float64) for side in (x, y))
    if not (x.size and np.isfinite(x).all() and np.isfinite(y).all()):
        return ""
    ways = PIXELS if name.startswith("pixel_values") else FRAMES if name == "input_features" else ()
    return next((said for way in ways if (said := way(x, y))), "")


def other_count(name, x, y) -> str:
    """More or fewer rows than are due."""
    if x.ndim != y.ndim or x.ndim < 2 or x.shape[-1] != y.shape[-1]:
        return ""
    n, m = x.shape[-2], y.shape[-2]
    if not name.startswith("pixel_values"):
        return f"{m} frames, {n} are due: another hop, or other padding" if name == "input_features" and n != m else ""
    soft = f", {m // 9} soft tokens and not {n // 9}" if n % 9 == m % 9 == 0 and x.shape[-1] == 768 else ""
    return f"{m} patches, {n} are due{soft}: another size of picture, or number of soft tokens" if n != m else ""


def error(x, y) -> float:
    """Relative to x."""
    return float(np.linalg.norm(y - x) / (np.linalg.norm(x) or 1.0))


def line(x, y) -> tuple[float, float, float]:
    """The a and b of y = a x + b, and the relative error that is left."""
    centred = x - x.mean()
    a = float((centred * y).sum() / ((centred * centred).sum() or 1.0))
    b = float(y.mean() - a * x.mean())
    return a, b, float(np.linalg.norm(y - a * x - b) / (np.linalg.norm(y - y.mean()) or 1.0))


def near(value, wanted) -> bool:
    return abs(value - wanted) < 0.01 * max(1.0, abs(wanted))


# -- pixels: patches, then the numbers of a patch


def by_pixel(x):
    return x.reshape(*x.shape[:-1], -1, 3)


def colours(x, y) -> str:
    if x.shape[-1] % 3:
        return ""
    if error(by_pixel(x)[..., ::-1], by_pixel(y)) < SAME:
        return "red and blue are swapped: BGR in the place of RGB"
    planes = by_pixel(x).swapaxes(-1, -2).reshape(x.shape)
    return "a patch is laid out colour by colour, not pixel by pixel" if error(planes, y) < SAME else ""


def scaled(x, y) -> str:
    a, b, left = line(x, y)
    if left > SAME:
        return ""
    if near(a, 2) and near(b, -1):
        return "the values are 2 x - 1: mean and deviation 0.5, where none is due"
    if near(a, 255):
        return "the values are not divided by 255"
    return "" if near(a, 1) and near(b, 0) else f"the values are {a:.4g} x {b:+.4g}"


def scaled_by_colour(x, y) -> str:
    if x.shape[-1] % 3:
        return ""
    found = [line(by_pixel(x)[..., c], by_pixel(y)[..., c]) for c in range(3)]
    if max(left for *_, left in found) > SAME:
        return ""
    return "each colour has a mean and a deviation of its own taken out, where none is due"


def resampled(x, y) -> str:
    """Another filter changes what is small, and little of the mean of a patch."""
    d = y - x
    means = np.linalg.norm(d.mean(-1)) * x.shape[-1] ** 0.5
    if error(x - x.mean(), y - x.mean()) > ALIKE or means > np.linalg.norm(d) / 2:
        return ""
    return "the same picture, resized by another filter: the means of its patches agree, their details do not"


# -- mel frames: frames, then bins


def logarithms(x, y) -> str:
    a, b, left = line(x, y)
    if left > 0.02:
        return ""
    if near(a, LOG10):
        return "logarithms to base 10, where natural ones are due"
    if near(a, 2):
        return "logarithms of the power, where those of the magnitude are due"
    if near(a, 2 * LOG10):
        return "logarithms to base 10 of the power, where natural ones of the magnitude are due"
    return "" if near(a, 1) and near(b, 0) else f"the values are {a:.4g} x {b:+.4g}"


def late(x, y) -> str:
    for k in (1, 2):
        for first, second, word in ((x[..., :-k, :], y[..., k:, :], "late"), (x[..., k:, :], y[..., :-k, :], "early")):
            if first.size and error(first, second) < SAME:
                return f"the frames come {k} too {word}: other padding at the start"
    return ""


def other_filters(x, y) -> str:
    """Frames that are loud together, and bins that are not the same."""
    loud, given = (side.mean(-1).reshape(-1) for side in (x, y))
    if loud.size < 4 or not (loud.std() and given.std()):
        return ""
    r = float(np.corrcoef(loud, given)[0, 1])
    return (
        f"another bank of mel filters, or window: the loudness of the frames agrees (r = {r:.3f})" if r > 0.95 else ""
    )


PIXELS = (colours, scaled, scaled_by_colour, resampled)
FRAMES = (logarithms, late, other_filters)
