"""What a Gemma 3n in Transformers computes, under our names: the decoder with its streams.

A module that runs more than once in a pass has its later runs as NAME#1, NAME#2.  What no module returns is caught
where Transformers has a method for it.
"""

import re
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from numgemma.debug.capture.arrays import modelling_of, to_numpy
from numgemma.debug.capture.towers_3n import TowersOf3n
from numgemma.trace import selects

TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")


class StreamsCatcher:
    """Gives what flows through a Gemma 3n of Transformers the names of our points, and passes it on to a sink."""

    def __init__(self, config, graph, ids, sink, points, media):
        self.config, self.graph, self.sink, self.points = config.text, graph, sink, points
        self.towers = TowersOf3n(config, graph, media, self.put)
        self.sizes = {"T": len(ids), "L": self.config.num_hidden_layers}
        self.sizes |= {"A": self.config.altup_num_inputs, "N": self.config.num_attention_heads}
        self.sizes |= {"K": self.config.num_key_value_heads}
        self.runs: Counter = Counter()
        self.attention, self.to_rotate = "", []  # of the layer that is running
        self.after_attention = None

    def begin(self, tokens):
        """A pass over so many tokens."""
        self.sizes["T"] = tokens
        self.runs.clear()
        self.towers.runs.clear()

    def keep(self, name, x):
        """Without the batch axis, joined axes split."""
        *front, _ = self.graph.axes(name).split() or [""]
        sizes = self.sizes | ({"T": x.shape[1]} if name in ("lm_head", "logits") else {})
        self.put(name, x.reshape([*(sizes[a] for a in front), -1]))

    def put(self, name, x):
        if name in self.graph and selects(self.points, name):
            self.sink.keep(name, to_numpy(x), self.graph.axes(name))

    def again(self, name):
        """The name of this run of a module."""
        self.runs[name] += 1
        return name if self.runs[name] == 1 else f"{name}#{self.runs[name] - 1}"

    @contextmanager
    def listening(self, hf):
        """Hooks on every module, and methods replaced, for as long as this lasts."""
        modelling, text = modelling_of(hf), hf.get_decoder()
        with ExitStack() as stack:
            for name, module in hf.named_modules():
                short = name.removeprefix("model.").removeprefix("language_model.")
                hooks = self.towers.hook(module, short) if short.startswith(TOWERS) else self.hook(module, short)
                for handle in hooks:
                    stack.callback(handle.remove)
            stack.callback(text.register_forward_pre_hook(self.merged, with_kwargs=True).remove)
            changes = [(modelling, "apply_rotary_pos_emb", self.rotary(modelling.apply_rotary_pos_emb))]
            changes += [(modelling, "eager_attention_forward", self.eager(modelling))]
            changes += [(text, "project_per_layer_inputs", self.told(text, "per_layer_inputs"))]
            for i, layer in enumerate(text.layers):
                scope, altup = f"layers.{i}", layer.altup
                changes += [(altup, name, self.told(altup, f"{scope}.altup.{name}", name)) for name in STEPS]
                modalities = self.told(altup, f"{scope}.altup.modalities", "compute_router_modalities")
                changes += [(altup, "compute_router_modalities", modalities)]
                scaled = self.told(altup, f"{scope}.altup.out", "forward")  # which no one calls as a module
                changes += [(altup, "forward", scaled)]
                topk = self.told(layer.mlp, f"{scope}.mlp.gaussian_topk", "_gaussian_topk")
                changes += [(layer.mlp, "_gaussian_topk", topk)]
            changes += self.towers.changes(modelling)
            for owner, name, change in changes:
                stack.enter_context(patch.object(owner, name, change))
            yield

    def hook(self, module, name):
        """Register what one module calls for."""
        layer, _, leaf = name.rpartition(".")
        after, before = module.register_forward_hook, module.register_forward_pre_hook
        if re.fullmatch(r"layers\.\d+", name):
            yield before(lambda m, x: self.begin_layer(name, x[0]))
            yield after(lambda m, x, out: self.end_layer(name, out))
        elif leaf == "laurel":
            yield after(lambda m, x, out: self.keep(f"{name}.out", out))
        elif leaf == "rotary_emb":
            yield after(lambda m, x, out: self.table(name, x[2], out))
        elif name in self.graph:
            yield after(lambda m, x, out: self.keep(self.again(name), out))
        if leaf == "o_proj":
            yield before(lambda m, x: self.keep(f"{layer}.context", x[0]))
        if leaf == "pre_feedforward_layernorm":
            yield before(lambda m, x: self.between_branches(layer, x[0]))
        if leaf == "post_feedforward_layernorm":
            yield after(lambda m, x, out: self.keep(f"{layer}.after_mlp", self.after_attention + out))
        if name == "norm":
            yield before(lambda m, x: self.keep("mean_of_streams", x[0]))

    def merged(self, text, args, kwargs):
        """The stream before the first layer; a text model makes it itself, of the embeddings alone."""
        if kwargs.get("inputs_embeds") is not None:
            self.keep("inputs_embeds", kwargs["inputs_embeds"])

    def begin_layer(self, layer, streams):
        if layer == "layers.0":
            self.put("streams", streams[:, 0])
            if self.runs["inputs_embeds"] == 0 and not self.towers.there:
                self.put("inputs_embeds", streams[0, 0])
        self.attention, self.to_rotate = f"{layer}.self_attn", ["q_rope", "k_rope"]  # in the order of the calls

    def end_layer(self, layer, out):
        self.attention = ""
        self.put(f"{layer}.out", out[:, 0])

    def between_branches(self, layer, x):
        self.after_attention = x
        self.keep(f"{layer}.after_attention", x)

    def table(self, name, kind, out):
        self.keep(f"{name}.{kind}.cos", out[0])
        self.keep(f"{name}.{kind}.sin", out[1])

    def told(self, owner, point, name="project_per_layer_inputs"):
        """That method, whose result is a point."""
        original = getattr(owner, name)

        def method(*args, **kwargs):
            y = original(*args, **kwargs)
            self.keep(self.again(point), y)
            return y

        return method

    def rotary(self, original):
        def apply_rotary_pos_emb(x, *args, **kwargs):
            y = original(x, *args, **kwargs)
            if self.attention and self.to_rotate:
                self.keep(f"{self.attention}.{self.to_rotate.pop(0)}", y)
            return y

        return apply_rotary_pos_emb

    def eager(self, modelling):
        original = modelling.eager_attention_forward

        def eager_attention_forward(module, query, key, value, attention_mask, **kwargs):
            y, probs = original(module, query, key, value, attention_mask, **kwargs)
            scores = query @ modelling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3)
            if attention_mask is not None:
                scores = scores.masked_fill(attention_mask < 0, 0)  # as our point: what the mask hides reads as 0
            if self.attention:
                self.keep(f"{self.attention}.scores", scores)
                self.keep(f"{self.attention}.probs", probs)
            return y, probs

        return eager_attention_forward


STEPS = ("predict", "correct")  # of AltUp: methods, which no hook sees
