"""How near is near enough: one table, and the measure that the tests share."""

import numpy as np

# relative RMS error of a tensor, and of its worst token
TOLERANCE = {"float64": (1e-12, 1e-11), "float32": (2e-5, 1e-4), "bfloat16": (2e-2, 5e-2)}  # bfloat16: of a whole run


def relative(a, b):
    """Relative RMS error of b against a."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(((a - b) ** 2).sum() / max((a**2).sum(), 1e-300))


def worst_token(a, b):
    return max(relative(x, y) for x, y in zip(a, b, strict=True))


def assert_close(a, b, precision="float32", what=""):
    rel, token = TOLERANCE[precision]
    assert np.shape(a) == np.shape(b), what
    assert relative(a, b) <= rel, (what, relative(a, b))
    assert worst_token(a, b) <= token, (what, worst_token(a, b))


def assert_same_run(a, b, precision="float32"):
    """Every point of dump a is in b and near it, and b has no other."""
    assert sorted(a) == sorted(b)
    for name in a:
        if a[name].dtype.kind == "i":
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        else:
            assert_close(a[name], b[name], precision, name)
