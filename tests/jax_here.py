"""The published `gemma` package without what it asks for beside JAX (`make test-jax`).

Its model of Gemma 3n needs of kauldron, a training library that brings TensorFlow, no more than names: of array types
in annotations, of keys, and of a place for weights on several devices.  They are declared here.
"""

import sys
import typing
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace


def arrays(kind):
    """A type of arrays in an annotation, Float["*B L D"]: `gemma` counts the axes behind those of a batch."""
    import jax
    import jaxtyping

    class Arrays:
        def __class_getitem__(cls, axes):
            return getattr(jaxtyping, kind)[jax.Array, axes]

    return Arrays


def make_importable():
    """Lets `gemma.gm` be imported where kauldron is not installed."""
    if "kauldron" in sys.modules or find_spec("kauldron"):
        return
    types = {kind: arrays(kind) for kind in ("Bool", "Float", "Int", "UInt8")} | {"Array": arrays("Shaped")}
    types |= dict.fromkeys(("PRNGKey", "PRNGKeyLike"), typing.Any) | {"PyTree": typing.Sequence}
    names = {
        "kauldron": {},
        "kauldron.typing": types | {"typechecked": unchanged, "check_type": unchanged},
        "kauldron.kontext": {"Key": str, "REQUIRED": "", "Path": None},
        "kauldron.kd": {"sharding": SimpleNamespace(ShardingTree=object)},
        "kauldron.utils": {},
        "kauldron.utils.immutabledict": {"ImmutableDict": dict},
    }
    for name, held in names.items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(held)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def unchanged(function, *args):
    return function
