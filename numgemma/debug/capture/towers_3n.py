"""What the towers of a Gemma 3n in Transformers compute, picture by picture and clip by clip, under our names.

Transformers runs all pictures of a prompt as one batch, and all clips as another, padded.  Here the batch is taken
apart, and the padding of sound is cut off.  Maps of C Y X become Y X C.
"""

import re
from collections import Counter

from numgemma.debug.capture.arrays import in_a_band
from numgemma.families.gemma3n.embedders import clips, pictures
from numgemma.prompt.media import suffixes

IDLE = ("Identity", "Dropout", "GELU", "ReLU")  # classes of modules that are no step of their own
NORMS = ("bn", "bn1", "bn2", "norm")  # that hold an activation, and are one point with it
HALVES = re.compile(r"subsample_conv_projection\.conv_([01])\b")
COMPOSITES = ("ffw_layer_start", "ffw_layer_end", "attention", "lconv1d")


class TowersOf3n:
    """Takes apart what the towers' modules return, and hands each piece to put(name, tensor)."""

    def __init__(self, config, graph, media, put):
        self.config, self.graph, self.put = config, graph, put
        self.seen = suffixes(len(pictures(media)))
        self.heard = list(zip(suffixes(len(clips(media))), [frames for _, frames in clips(media)], strict=True))
        self.there = config.vision is not None
        self.runs: Counter = Counter()
        self.layer = ""  # of a tower, whose attention runs

    def hook(self, module, name):
        """Register what one module of a tower calls for."""
        tower, _, rest = name.partition(".")
        leaf = rest.rpartition(".")[2]
        if tower == "vision_tower":
            yield from self.hook_vision(module, rest, leaf)
        elif tower == "audio_tower":
            yield from self.hook_audio(module, rest, leaf)
        elif rest:
            yield module.register_forward_hook(lambda m, x, out: self.embedded(tower, rest, out))

    def changes(self, modelling):
        """Functions to replace: what attention computes is nobody's output."""
        functional = modelling.nn.functional
        fused = self.fused(functional.scaled_dot_product_attention)
        return [
            (functional, "scaled_dot_product_attention", fused),
            (functional, "softmax", self.frames_of(functional.softmax)),
        ]

    # what embeds hard and soft tokens

    def embedded(self, tower, rest, out):
        """First for the tokens of the prompt; then soft tokens; for sound, at last, what stands behind it."""
        if not self.there:
            return
        run, self.runs[f"{tower}.{rest}"] = self.runs[f"{tower}.{rest}"], self.runs[f"{tower}.{rest}"] + 1
        soft = rest.startswith("soft") or ("projection" in rest and run == 1)
        name = f"{rest}#{run}" if run else rest
        if not soft:
            return self.put(f"{tower}.{name}", out[0])
        pieces = self.seen if tower == "embed_vision" else self.heard
        for which, x in zip(pieces, out, strict=True):
            suffix, rows = (which, len(x)) if tower == "embed_vision" else (which[0], self.kept(which[1]))
            self.put(f"{tower}{suffix}.{name}", x[:rows])

    # pictures

    def hook_vision(self, module, rest, leaf):
        name, after = f"vision_tower*.{rest}", module.register_forward_hook
        if rest == "":
            yield after(lambda m, x, out: self.seen_all(out.last_hidden_state))
        elif re.fullmatch(r"timm_model\.(blocks\.\d+\.\d+|msfa\.ffn)", rest):
            yield after(lambda m, x, out: self.maps(f"{name}.out", out))
        elif leaf in NORMS or is_step(module):
            yield after(lambda m, x, out: self.maps(name, out))
        if leaf == "attn":
            yield module.register_forward_pre_hook(lambda *_: setattr(self, "layer", name))

    def seen_all(self, x):
        self.layer = ""
        self.maps("vision_tower*.out", x)

    def maps(self, name, x):
        """x: pictures C Y X"""
        for suffix, piece in zip(self.seen, x, strict=True):
            self.put(name.replace("*", suffix), piece.permute(1, 2, 0))

    def fused(self, original):
        def scaled_dot_product_attention(q, k, v, **kwargs):
            y = original(q, k, v, **kwargs)
            if not self.layer.startswith("vision_tower"):
                return y  # the decoder's
            scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # that function has none to show
            for suffix, one, out in zip(self.seen, scores, y, strict=True):
                layer = self.layer.replace("*", suffix)
                self.put(f"{layer}.scores", one)
                self.put(f"{layer}.probs", one.softmax(-1))
                self.put(f"{layer}.context", out.transpose(0, 1))
            return y

        return scaled_dot_product_attention

    # sound

    def hook_audio(self, module, rest, leaf):
        name, after = f"audio_tower*.{rest}", module.register_forward_hook
        half = HALVES.search(rest)
        if rest == "":
            yield after(lambda m, x, out: self.softened(out.last_hidden_state))
        elif half and leaf in ("conv", "norm", "conv_0", "conv_1"):
            point = name if leaf in ("conv", "norm") else f"{name}.out"
            yield after(lambda m, x, out: self.halved(point, int(half[1]), out, leaf != "norm"))
        elif leaf == "pos_proj":
            yield after(lambda m, x, out: self.alike(name, out[0]))
        elif leaf == "attn":
            yield module.register_forward_pre_hook(lambda *_: setattr(self, "layer", name))
            yield after(lambda m, x, out: self.each(f"{name}.context", out))
        elif leaf in COMPOSITES:
            yield after(lambda m, x, out: self.each(f"{name}.out", out))
        elif self.heard and name.replace("*", self.heard[0][0]) in self.graph:  # a wrapped linear too
            yield after(lambda m, x, out: self.each(name, out))
        if leaf == "depthwise_conv1d":
            glu = f"{name.rpartition('.')[0]}.glu"
            before = module.kernel_size[0] - 1
            yield module.register_forward_pre_hook(lambda m, x: self.each(glu, x[0][..., before:].transpose(1, 2)))

    def each(self, name, x):
        """x: clips of frames, padded; a projection's heads lie side by side."""
        for (suffix, frames), piece in zip(self.heard, x, strict=True):
            full = name.replace("*", suffix)
            axes = self.graph.axes(full).split()
            real = piece.narrow(axes.index("U"), 0, -(-frames // 4))
            if "N" in axes:
                real = real.reshape(len(real), self.config.audio.conf_num_attention_heads, -1)
            self.put(full, real)

    def alike(self, name, x):
        """x: R C, the same for all clips"""
        for suffix, _ in self.heard:
            heads = x.reshape(len(x), self.config.audio.conf_num_attention_heads, -1)
            self.put(name.replace("*", suffix), heads)

    def halved(self, name, half, x, channels_first):
        """What one of the two convolutions makes, for as many frames as the next step asks for."""
        for (suffix, frames), piece in zip(self.heard, x, strict=True):
            maps = piece.permute(1, 2, 0) if channels_first else piece
            quarter = -(-frames // 4)
            self.put(name.replace("*", suffix), maps[: quarter if half else 2 * quarter + 1])

    def softened(self, x):
        for (suffix, frames), piece in zip(self.heard, x, strict=True):
            self.put(f"audio_tower{suffix}.out", piece[: self.kept(frames)])

    def kept(self, frames):
        """Soft tokens of so many mel frames."""
        quarter = -(-frames // 4)
        return -(-quarter // self.config.audio.conf_reduction_factor)

    def frames_of(self, original):
        def softmax(x, *args, **kwargs):
            y = original(x, *args, **kwargs)
            if x.dim() == 5:  # of the audio tower; what the mask hides reads as 0, as in our point
                self.frame_map("scores", x.masked_fill(x == smallest(x), 0))
                self.frame_map("probs", y.to(x.dtype))
            return y

        return softmax

    def frame_map(self, point, blocked):
        """One map of one layer.  B N blocks chunk context -> for each clip N U R"""
        banded = in_a_band(blocked, self.config.audio.conf_attention_context_left)
        for (suffix, frames), piece in zip(self.heard, banded, strict=True):
            self.put(f"{self.layer}.{point}".replace("*", suffix), piece[:, : -(-frames // 4)])


def smallest(x):
    """What hides a score: the smallest number of its dtype."""
    from torch import finfo

    return finfo(x.dtype).min


def is_step(module):
    """Whether the module has no parts with points of their own, and does something."""
    return not any(module.children()) and type(module).__name__ not in IDLE
