"""Lint: config.json, every key of it; and, where it is wrong, the nearest config that could be meant.

`read_config` stops at the first fault.  Here each is named, and put right as well as can be, so that the tensors can
be looked at all the same.
"""

from dataclasses import MISSING, dataclass, fields
from typing import Any

from numgemma.config import HARMLESS, PASSED_OVER, of_key
from numgemma.errors import InputError
from numgemma.families import Family, find, read_config
from numgemma.families.family import Section
from numgemma.families.gemma4.config import LayerSpec, TextConfig, check_rope
from numgemma.surgery.findings import Finding, error, note, ranges, warning

FULL, SLIDING = "full_attention", "sliding_attention"

# What stands in for a rope that cannot be read; the shapes of tensors do not depend on it.
ROPE = {"rope_type": "default", "rope_theta": 1e4}


@dataclass(frozen=True)
class Sections:
    """config.json taken apart."""

    text: dict[str, Any]
    top: dict[str, Any]  # what is in no section; the same as text where the config is flat


def sections(raw: dict[str, Any]) -> Sections:
    text = raw.get("text_config")
    if isinstance(text, dict):
        return Sections(text, {key: value for key, value in raw.items() if not key.endswith("_config")})
    return Sections(raw, raw)


def config_rules(raw: dict[str, Any], depth: int) -> tuple[Any, list[Finding]]:
    """The config that is meant, and what is wrong with the one that is there.  depth: layers that have tensors

    None where a width is missing, so that no shape of a tensor is known.
    """
    family = known(raw)
    if family is None:
        return None, [
            error("family", f"model_type is {raw.get('model_type')!r:.60}, of which no rules are known here.")
        ]
    found: list[Finding] = []
    section, where = sections(raw), "config.json" if sections(raw).text is raw else "text_config"
    text = draft(TextConfig, family.sections["text"].spelled(section.text), where, found)
    if text is None:
        return None, found
    c = mended(text, depth, found)
    found += [*layer_rules(c), *text_rules(c)] if c else []
    return (whole(raw, family, c, found) if c else None), found


def known(raw: dict[str, Any]) -> Family | None:
    """The family, if its decoder is one that these rules are about."""
    try:
        family = find(raw, "config.json")
    except InputError:
        return None
    text = family.sections.get("text")
    return family if text and text.cls is TextConfig else None


def is_plain(raw: dict[str, Any]) -> bool:
    """Whether it is of a family that runs here and has no rules of its own."""
    try:
        find(raw, "config.json")
    except InputError:
        return False
    return known(raw) is None


def draft(cls, raw: dict[str, Any], where: str, found: list[Finding]) -> dict[str, Any] | None:
    """The keys of a section that are of their type; every other is a finding.  None where one without default lacks."""
    known = {f.name: f for f in fields(cls)}
    for key in sorted(
        raw.keys() - known.keys() - HARMLESS - PASSED_OVER - {"vision_config", "audio_config", "text_config"}
    ):
        found.append(error("key", f"{where}: key '{key:.60}' is unknown, and could change the numbers."))
    values, lacking = {}, False
    for name, f in known.items():
        if name not in raw:
            if f.default is MISSING:
                found.append(error("key", f"{where}: key '{name}' is missing."))
                lacking |= name not in MENDABLE
            continue
        try:
            values[name] = of_key(raw, f, where)
        except InputError as problem:
            found.append(error("key", f"{problem}"))
            lacking |= f.default is MISSING and name not in MENDABLE
    return None if lacking else values


# Keys without which the shapes of the tensors are known all the same, and what stands in for them.
MENDABLE: dict[str, Any] = {
    "num_hidden_layers": 0,
    "layer_types": (),
    "num_kv_shared_layers": 0,
    "rope_parameters": {},
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
}
MOST = 4096  # layers, of which a table is made


def mended(values: dict[str, Any], depth: int, found: list[Finding]) -> TextConfig | None:
    """A text config from which a layer table can be made."""
    values = MENDABLE | values
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    for name in sizes:
        if values[name] <= 0:
            found.append(error("size", f"{name} is {values[name]}, which is no size."))
            return None
    kinds, said = list(values["layer_types"]), values["num_hidden_layers"]
    if said != len(kinds):
        found.append(error("count", f"num_hidden_layers is {said}, and layer_types lists {len(kinds)}."))
    if depth not in (0, said):
        found.append(error("count", f"There are tensors of {depth} layers, and num_hidden_layers is {said}."))
    L = min(MOST, depth or max(said, len(kinds)))
    kinds = [kind if kind in (FULL, SLIDING) else SLIDING for kind in kinds[:L]]
    kinds += [SLIDING] * (L - len(kinds))
    shared = min(max(0, values["num_kv_shared_layers"]), max(0, L - 1))
    ropes = {kind: usable_rope(values["rope_parameters"].get(kind)) for kind in (FULL, SLIDING)}
    odd = {"per_layer_config": usable_widths(values.get("per_layer_config"), found)}
    odd |= {"num_hidden_layers": L, "layer_types": tuple(kinds), "num_kv_shared_layers": shared}
    c = TextConfig(**(values | odd | {"rope_parameters": ropes}))
    found += list_rules(values, L)
    return c if L else None


def usable_rope(rope):
    try:
        check_rope(rope, "")
    except InputError:
        return ROPE
    return rope


def usable_widths(entries, found: list[Finding]):
    """per_layer_config, if each entry is what one is."""
    names = {"head_dim", "num_key_value_heads"}
    for key, entry in (entries or {}).items():
        sound = isinstance(entry, dict) and not entry.keys() - names and all(type(n) is int for n in entry.values())
        if not (key.isdecimal() and sound):
            found.append(error("widths", f"per_layer_config '{key:.20}' is no layer with its head_dim and heads."))
            return None
    return entries


def list_rules(values: dict[str, Any], L: int) -> list[Finding]:
    """What the config says of its layers, as it stands there."""
    kinds, shared, found = values["layer_types"], values["num_kv_shared_layers"], []
    for kind in sorted(set(kinds) - {FULL, SLIDING}):
        found.append(error("kind", f"layer_types lists {kind!r:.40}, and a layer is {FULL} or {SLIDING}."))
    if kinds and kinds[-1] != FULL:
        found.append(error("last", f"The last layer is listed as {kinds[-1]!r:.40}, and Gemma 4 ends with a full one."))
    if not 0 <= shared < max(1, L):
        found.append(error("shared", f"num_kv_shared_layers is {shared}, and of {L} layers at least one makes keys."))
    for kind in sorted({*kinds} & {FULL, SLIDING}):
        try:
            check_rope(values["rope_parameters"].get(kind), f"rope_parameters of {kind}")
        except InputError as problem:
            found.append(error("rope", str(problem)))
    return found


def layer_rules(c: TextConfig) -> list[Finding]:
    """Donors, and widths that agree within a kind."""
    found = []
    first = c.num_hidden_layers - c.num_kv_shared_layers
    for kind in dict.fromkeys(c.layer_types[first:]):
        if kind not in c.layer_types[:first]:
            readers = ranges(s.index for s in c.layers[first:] if s.kind == kind)
            text = f"Layers {readers}: share the keys of an earlier {kind} layer, and no layer before {first} is one."
            found.append(error("donor", text))
    for kind, some in by_kind(c).items():
        if len({s.H for s in some}) > 1 or len({s.K for s in some}) > 1:
            found.append(error("widths", f"per_layer_config gives {kind} layers different widths."))
        N, K, H = some[0].N, some[0].K, some[0].H
        if K < 1 or H < 2 or N % K or H % 2:
            text = f"{kind} layers have {N} heads for {K} key/value heads of width {H}: N is no multiple, or H is odd."
            found.append(error("heads", text))
    return found


def by_kind(c: TextConfig) -> dict[str, list[LayerSpec]]:
    return {kind: [s for s in c.layers if s.kind == kind] for kind in dict.fromkeys(c.layer_types)}


def text_rules(c: TextConfig) -> list[Finding]:
    """The rest: what has one value in the family, and what has no meaning."""
    P, moe = c.hidden_size_per_layer_input or 0, (c.num_experts, c.top_k_experts, c.moe_intermediate_size)
    cap, E, J = c.final_logit_softcapping, c.num_experts or 0, c.top_k_experts or 0
    act, vision = c.hidden_activation, c.use_bidirectional_attention
    table = c.vocab_size_per_layer_input
    rules: list[tuple[Any, Finding]] = [
        (act == "gelu_pytorch_tanh", error("activation", f"hidden_activation '{act:.40}' is not Gemma 4's.")),
        (not c.attention_bias, error("bias", "attention_bias is true, and Gemma 4 has no biases there.")),
        (vision in (None, "vision"), error("mask", f"use_bidirectional_attention {vision!r:.40} means nothing.")),
        (c.sliding_window > 0, error("window", f"sliding_window is {c.sliding_window}.")),
        (c.rms_norm_eps > 0, error("eps", f"rms_norm_eps is {c.rms_norm_eps}.")),
        (not c.enable_moe_block or all(moe), error("experts", "enable_moe_block is true, and there are no experts.")),
        (not c.enable_moe_block or J <= E, error("experts", f"top_k_experts chooses {J} of {E} experts.")),
        (not P or table >= c.vocab_size, per_layer_vocabulary(table, c.vocab_size)),
        (cap, warning("softcap", "final_logit_softcapping is off; all released Gemma 4 cap their logits at 30.")),
        (c.tie_word_embeddings, warning("tied", "tie_word_embeddings is false; all released Gemma 4 tie them.")),
    ]
    return [finding for holds, finding in rules if not holds]


def per_layer_vocabulary(table: int, vocab: int) -> Finding:
    return error("vocabulary", f"vocab_size_per_layer_input is {table}: tokens up to {vocab - 1} have no row there.")


def whole(raw: dict[str, Any], family: Family, text: TextConfig, found: list[Finding]):
    """The text config with the towers that can be read."""
    cls = family.sections["whole"].cls
    if sections(raw).text is raw:
        return cls(text=text, tie_word_embeddings=text.tie_word_embeddings)
    top = {key: value for key, value in raw.items() if key not in ("text_config", "vision_config", "audio_config")}
    values = draft(cls, top | {"text": text}, "config.json", found) or {"text": text}
    towers = [name for name in ("vision", "audio") if name in family.sections]
    return cls(**values | {name: tower(raw, f"{name}_config", family.sections[name], found) for name in towers})


def tower(raw: dict[str, Any], name: str, section: Section, found: list[Finding]):
    """The config of a tower; None where there is none, or none that shapes could be known from."""
    there, cls = raw.get(name) or {}, section.cls
    if not isinstance(there, dict):
        found.append(error("key", f"{name} should be an object, it is {there!r:.40}."))
        return None
    values = draft(cls, section.spelled(there), name, found) if there else None
    if values is None or {f.name for f in fields(cls) if f.default is MISSING} - values.keys():
        return None
    try:
        section.check(cls(**values), name)
    except InputError as problem:
        found.append(error("tower", str(problem)))
        return None
    return cls(**values)


def last_word(raw: dict[str, Any], found: list[Finding]) -> list[Finding]:
    """What the reader of configs says, if nothing that was found explains why it would refuse this one."""
    try:
        read_config(raw, "config.json")
    except InputError as problem:
        return [] if any(finding.severity == "error" for finding in found) else [error("config", str(problem))]
    return []


def skipped() -> Finding:
    return note("config", "Names and shapes of the tensors were not checked: the config does not say enough.")
