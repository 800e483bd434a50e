"""What a user of the package may rely on: public names say what they take and give, and the types of it."""

import dataclasses
import inspect
from importlib.resources import files

import numgemma
from numgemma.debug.compare.result import Diff, Hint, PointDiff
from numgemma.debug.measure.logits import Flip, LogitsDiff
from numgemma.generate import Memory

RESULTS = (Diff, PointDiff, Hint, LogitsDiff, Flip, Memory)
PUBLIC = [value for name in numgemma.__all__ if callable(value := getattr(numgemma, name))] + list(RESULTS)


def functions():
    """(name, function) of every public function, method and property."""
    for value in PUBLIC:
        if not inspect.isclass(value):
            yield value.__name__, value
            continue
        for name, held in vars(value).items():
            function = getattr(held, "fget", None) or getattr(held, "func", None) or held
            own = inspect.isfunction(function) and function.__module__ == value.__module__
            if own and (not name.startswith("_") or (name == "__init__" and not dataclasses.is_dataclass(value))):
                yield f"{value.__name__}.{name}", function


def test_public_names_have_a_docstring():
    assert not [
        value.__name__ for value in PUBLIC if not value.__doc__ or value.__doc__.startswith(f"{value.__name__}(")
    ]
    assert not [name for name, function in functions() if not function.__doc__ and not name.endswith("__init__")]


def test_public_functions_have_types_for_all_they_take_and_return():
    untyped = []
    for name, function in functions():
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if p.name != "self"]
        if signature.return_annotation is inspect.Signature.empty:
            untyped.append(f"{name} ->")
        untyped += [f"{name}: {p.name}" for p in given if p.annotation is inspect.Parameter.empty]
    assert len(dict(functions())) > 25
    assert untyped == []


def test_the_package_says_that_it_is_typed():
    assert (files("numgemma") / "py.typed").is_file()
