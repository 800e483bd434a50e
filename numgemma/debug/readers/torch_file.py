"""Tensors from what `torch.save` wrote, without torch and without unpickling.

Such a file is a zip archive of a pickle and of raw storages.  The pickle is read here as a list of opcodes, of which
only those that build plain containers are followed; a global is never imported, it is a name, and the few names that
stand for tensors make a description of a tensor.  Anything else is refused.  The storages are memory-mapped.
"""

import math
import pickletools
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

from numgemma.errors import InputError
from numgemma.incoming import open_regular
from numgemma.smallfloats import BFLOAT16, computable
from numgemma.weights.safetensors import MAX_TENSORS

LARGEST_PICKLE = 1 << 24  # bytes; a hundred thousand tensors need less

STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
ORDERED, SIZE = "collections OrderedDict", "torch Size"
DTYPE_NAMES = {f"torch {name}" for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")}


class Name(str):
    """A global that the pickle asks for: its module and its name, nothing more."""


class Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class Strided(NamedTuple):
    """What the pickle says of a tensor."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(ValueError):
    """The file asks for something other than tensors in plain containers; the text says what."""


def read_torch(path) -> Any:
    """What was saved: tensors as read-only arrays, in dicts, lists, tuples, strings and numbers.

    Raises InputError where the file is not a zip archive of torch.save, is damaged, or holds more than that.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            name = next((n for n in infos if n.endswith("/data.pkl") and n.count("/") == 1), None)
            if name is None:
                raise Refused("holds no data.pkl")
            folder = name.removesuffix("data.pkl")
            value = build(opcodes(stored(path, infos[name], LARGEST_PICKLE)))
            return Loader(path, infos, folder).filled(value, 0)
    except (zipfile.BadZipFile, OSError, EOFError, struct.error, NotImplementedError) as error:
        raise InputError(f"{path}: is not a whole file of torch.save ({error}); save it again.") from None
    except Refused as error:
        raise InputError(f"{path}: {error}; save tensors alone, as torch.save({{name: tensor}}, path).") from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: its pickle is damaged ({error!r:.100}); save it again with torch.save.") from None


def stored(path, info, most=None):
    """The bytes of a zip member, mapped.  torch.save compresses nothing, so a compressed member is refused."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Refused(f"{info.filename!r:.80} is compressed or encrypted, which torch.save never does")
    if most is not None and info.file_size > most:
        raise Refused(f"its pickle has {info.file_size} bytes")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise zipfile.BadZipFile("a member's header is missing")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        end = file.seek(0, 2)
    if start + info.file_size > end:
        raise zipfile.BadZipFile("cut short")
    return np.memmap(path, np.uint8, "r", start, info.file_size) if info.file_size else np.zeros(0, np.uint8)


def opcodes(data):
    """The pickle as (name of the opcode, argument)."""
    try:
        for op, argument, _ in pickletools.genops(bytes(data)):
            yield op.name, argument
    except DeprecationWarning:  # of an escape in a name, where warnings are errors
        raise Refused("its pickle is damaged") from None


class Machine:
    """The few opcodes of a pickle that build containers of plain values."""

    def __init__(self):
        self.stack, self.marks, self.memo = [], [], {}

    def push(self, value):
        self.stack.append(value)

    def popped(self):
        """Everything above the last mark."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def take(self, count):
        if count > len(self.stack):
            raise Refused("its pickle is damaged")
        items, self.stack[len(self.stack) - count :] = self.stack[len(self.stack) - count :], []
        return items

    def set_items(self, items):
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(target, dict) or not isinstance(key, (str, int)) or len(target) >= MAX_TENSORS:
                raise Refused("holds a mapping whose keys are not names")
            target[key if isinstance(key, str) else str(key)] = value

    def append(self, items):
        if not isinstance(self.stack[-1], list) or len(self.stack[-1]) + len(items) > MAX_TENSORS:
            raise Refused("holds a list that is too long, or none")
        self.stack[-1].extend(items)


def build(ops):
    """The value that a pickle describes.  Raises Refused for any opcode or global that is not about tensors."""
    m = Machine()
    simple = {
        **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), m.push),
        **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"), m.push),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), lambda i: m.memo.__setitem__(int(i), m.stack[-1])),
        **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), lambda i: m.push(m.memo[int(i)])),
        **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
        "MEMOIZE": lambda _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
        "NONE": lambda _: m.push(None),
        "NEWTRUE": lambda _: m.push(True),
        "NEWFALSE": lambda _: m.push(False),
        "EMPTY_DICT": lambda _: m.push({}),
        "EMPTY_LIST": lambda _: m.push([]),
        "EMPTY_TUPLE": lambda _: m.push(()),
        "MARK": lambda _: m.marks.append(len(m.stack)),
        "TUPLE": lambda _: m.push(tuple(m.popped())),
        "TUPLE1": lambda _: m.push(tuple(m.take(1))),
        "TUPLE2": lambda _: m.push(tuple(m.take(2))),
        "TUPLE3": lambda _: m.push(tuple(m.take(3))),
        "APPEND": lambda _: m.append(m.take(1)),
        "APPENDS": lambda _: m.append(m.popped()),
        "SETITEM": lambda _: m.set_items(m.take(2)),
        "SETITEMS": lambda _: m.set_items(m.popped()),
        "GLOBAL": lambda name: m.push(named(name)),
        "STACK_GLOBAL": lambda _: m.push(named(" ".join(m.take(2)))),
        "BINPERSID": lambda _: m.push(storage(*m.take(1))),
        "REDUCE": lambda _: m.push(reduced(*m.take(2))),
        "BUILD": lambda _: m.take(1),  # the attributes of an OrderedDict: none that we read
    }
    for name, argument in ops:
        if name == "STOP":
            return m.stack[-1]
        if name not in simple:
            raise Refused(f"its pickle uses {name}, which no dump of tensors needs")
        simple[name](argument)
    raise Refused("its pickle has no end")


def named(name):
    """A global's name, if it is one of those that stand for tensors."""
    module, _, leaf = name.partition(" ")
    known = name in {TENSOR, PARAMETER, ORDERED, SIZE} | DTYPE_NAMES or (module == "torch" and leaf in STORAGES)
    if not known:
        raise Refused(f"asks for {'.'.join(name.split()[:2])!r:.80}, which is no tensor and is never imported")
    return Name(name)


def storage(pid):
    """A reference to raw bytes: ("storage", its type, key, device, size)."""
    kind, what, key, _, size = pid
    dtype = STORAGES.get(what.partition(" ")[2]) if isinstance(what, Name) else None
    if kind != "storage" or dtype is None or not isinstance(key, str) or type(size) is not int:
        raise Refused("has a storage of an unknown kind")
    return Storage(dtype, key, size)


def reduced(function, arguments):
    """The calls that a pickle may make, none of which calls anything."""
    if function == ORDERED and not arguments:
        return {}
    if function == SIZE:
        return tuple(arguments[0])
    if function == TENSOR:
        where, offset, shape, strides, *_ = arguments
        counts = [offset, *shape, *strides]
        if not isinstance(where, Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
            raise Refused("has a tensor of impossible sizes")
        return Strided(where, offset, tuple(shape), tuple(strides))
    if function == PARAMETER and isinstance(arguments[0], Strided):
        return arguments[0]
    raise Refused(f"calls {function!r:.80}")


class Loader:
    """Puts arrays in the place of descriptions."""

    def __init__(self, path, infos, folder):
        self.path, self.infos, self.folder, self.count = path, infos, folder, 0

    def filled(self, value, depth):
        self.count += 1
        if depth > 4 or self.count > 10 * MAX_TENSORS:
            raise Refused("nests its tensors too deep, or holds too many")
        if isinstance(value, Strided):
            return self.array(value)
        if isinstance(value, dict):
            return {key: self.filled(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.filled(inner, depth + 1) for inner in value]
        return value

    def array(self, t):
        """A read-only view of the storage.  What would reach beyond it, or repeat its values, is refused."""
        info = self.infos.get(f"{self.folder}data/{t.storage.key}")
        if info is None:
            raise Refused(f"lacks the storage {t.storage.key!r:.40}")
        raw = stored(self.path, info)
        flat = raw[: raw.size // t.storage.dtype.itemsize * t.storage.dtype.itemsize].view(t.storage.dtype)
        if len(t.shape) != len(t.strides) or len(t.shape) > 32:
            raise Refused("has a tensor of impossible sizes")
        if 0 in t.shape:
            return computable(np.zeros([min(n, 2**20) for n in t.shape], t.storage.dtype))
        end = t.offset + sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True))
        if end >= flat.size or math.prod(t.shape) > flat.size:
            raise Refused(f"has a tensor of shape {list(t.shape)!r:.80} in a storage of {flat.size} values")
        steps = [s * t.storage.dtype.itemsize for s in t.strides]
        view = np.lib.stride_tricks.as_strided(flat[t.offset :], t.shape, steps, writeable=False)
        return computable(view.view(np.ndarray))
