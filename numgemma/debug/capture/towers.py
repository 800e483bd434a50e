"""What the vision and audio towers of a Transformers model compute, picture by picture and clip by clip.

Transformers runs all pictures of a prompt as one padded batch, and all clips as another.  Here the padding is cut off
and the batch taken apart, as if each had run alone, under the names that multimodal.py gives them.
"""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from numgemma.debug.capture.arrays import in_a_band, modelling_of
from numgemma.prompt.media import clips, frames, images, suffixes


class Towers:
    """Takes apart what the towers' modules return, and hands each piece to keep(name, tensor, axes)."""

    def __init__(self, config, graph, media, keep):
        self.config, self.graph, self.keep = config, graph, keep
        self.names = {
            "vision": suffixes(len(images(media) + frames(media))),
            "audio": suffixes(len(clips(media))),
        }
        self.batch = []  # of the tower that runs: a suffix, and which rows are real
        self.pooled = []  # of those pictures: how many soft tokens each has
        self.layer = ""  # that runs, and the names its rotated queries and keys will have
        self.to_rotate = []

    @contextmanager
    def listening(self, hf):
        """Hooks on the modules of both towers, and functions replaced, for as long as this lasts."""
        whole = getattr(hf, "model", hf)
        vision, audio = (getattr(whole, name, None) for name in ("vision_tower", "audio_tower"))
        modelling = modelling_of(audio if vision is None else vision)  # EmbeddingGemma's towers are Gemma 4's
        with ExitStack() as stack:
            for name, module in hf.named_modules():
                for handle in self.hook(module, name.removeprefix("model.")):
                    stack.callback(handle.remove)
            rope = self.rotated(modelling.apply_multidimensional_rope)
            stack.enter_context(patch.object(modelling, "apply_multidimensional_rope", rope))
            stack.enter_context(patch.object(modelling.F, "softmax", self.before_softmax(modelling.F.softmax)))
            if vision is not None:
                place = self.position_embeddings(vision.patch_embedder._position_embeddings)
                stack.enter_context(patch.object(vision.patch_embedder, "_position_embeddings", place))
            yield

    def hook(self, module, name):
        """Register what one module of a tower calls for."""
        tower, _, rest = name.partition(".")
        if tower == "vision_tower":
            yield from self.hook_vision(module, rest)
        elif tower == "audio_tower":
            yield from self.hook_audio(module, rest)
        elif tower == "embed_vision" and rest:
            yield module.register_forward_hook(lambda m, x, out: self.split(f"embed_vision*.{rest}", out))
        elif tower == "embed_audio" and rest:
            yield module.register_forward_hook(lambda m, x, out: self.each(f"embed_audio*.{rest}", out))

    # one picture or clip at a time; a * in a name is where its number stands

    def each(self, name, x):
        """x: a batch; the axis of patches or frames is padded."""
        for (suffix, real), piece in zip(self.batch, x, strict=True):
            axes = self.axes(name, suffix)
            along = axes.index("U") if "U" in axes else 0
            rows = real[:: self.stride(name)]
            piece = piece.movedim(along, 0)[rows].movedim(0, along)
            self.put(name, suffix, self.with_heads(piece, axes))

    def split(self, name, x):
        """x: soft tokens of all pictures, one after another."""
        for (suffix, _), piece in zip(self.batch, x.split(self.pooled), strict=True):
            self.put(name, suffix, piece)

    def alike(self, name, x):
        """x: the same for all clips, with a batch axis of 1."""
        for suffix, _ in self.batch:
            self.put(name, suffix, self.with_heads(x[0], self.axes(name, suffix)))

    def put(self, name, suffix, x):
        self.keep(name.replace("*", suffix), x, " ".join(self.axes(name, suffix)))

    def is_point(self, name):
        """Whether a module returns a point, of the first picture or clip; a wrapped linear does, its parts do not."""
        suffix = next(iter(self.names[name.partition("_")[0]]), "")
        return name.replace("*", suffix) in self.graph

    def axes(self, name, suffix):
        return self.graph.axes(name.replace("*", suffix)).split()

    def stride(self, name):
        """How many mel frames one row of this point stands for."""
        if name.startswith("vision") or ".layer0." in name:
            return 2 if ".layer0." in name else 1
        return 4

    def with_heads(self, x, axes):
        """What a projection returns has its heads side by side."""
        if axes[1:] not in (["N", "H"], ["K", "H"]) or x.dim() == 3:
            return x
        c = self.config
        if axes[0] == "I":
            return x.reshape(len(x), -1, c.vision.head_dim)
        return x.reshape(len(x), c.audio.num_attention_heads, -1)

    # the vision tower

    def hook_vision(self, module, rest):
        name, leaf = f"vision_tower*.{rest}", rest.rpartition(".")[2]
        if rest == "":
            yield module.register_forward_pre_hook(self.see, with_kwargs=True)
            yield module.register_forward_hook(lambda m, x, out: self.split("vision_tower*.out", out.last_hidden_state))
        elif leaf == "rotary_emb":
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{name}.cos", out[0]))
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{name}.sin", out[1]))
        elif leaf == "pooler":
            yield module.register_forward_hook(lambda m, x, out: self.pool(*out))
        elif leaf == "patch_embedder" or leaf.isdecimal():
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{name}.out", out))
        elif self.is_point(name):
            yield module.register_forward_hook(lambda m, x, out: self.each(name, out))
        layer = name.rpartition(".")[0]
        if leaf == "self_attn":
            yield module.register_forward_pre_hook(lambda *_: self.enter(name))
        if leaf == "o_proj":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{layer}.context", x[0]))
        if leaf == "pre_feedforward_layernorm":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{layer}.after_attention", x[0]))

    def see(self, module, args, kwargs):
        """The tower begins on a batch of pictures: on the images, or after them on the frames of videos."""
        real = kwargs["pixel_position_ids"][..., 0] >= 0
        self.batch = [(self.names["vision"].pop(0), rows) for rows in real]

    def enter(self, name):
        self.layer, self.to_rotate = name, ["q_rope", "k_rope"]

    def pool(self, soft, real):
        self.pooled = real.sum(-1).tolist()
        for (suffix, _), piece, rows in zip(self.batch, soft, real, strict=True):
            self.put("vision_tower*.pooler", suffix, piece[rows])

    def position_embeddings(self, original):
        def _position_embeddings(*args):
            y = original(*args)
            self.each("vision_tower*.patch_embedder.position_embedding", y)
            return y

        return _position_embeddings

    def rotated(self, original):
        def apply_multidimensional_rope(x, *args, **kwargs):
            y = original(x, *args, **kwargs)
            point = self.to_rotate.pop(0)
            self.each(f"{self.layer}.{point}", y)
            return y

        return apply_multidimensional_rope

    def patch_maps(self, scores, probs):
        """Both maps of one layer of the vision tower.  B N I I, padding masked"""
        for point, maps in (("scores", scores), ("probs", probs)):
            for (suffix, real), piece in zip(self.batch, maps, strict=True):
                self.put(f"{self.layer}.{point}", suffix, piece[:, real][:, :, real])

    # the audio tower

    def hook_audio(self, module, rest):
        name, leaf = f"audio_tower*.{rest}", rest.rpartition(".")[2]
        if rest == "":
            yield module.register_forward_pre_hook(self.hear)
            yield module.register_forward_hook(lambda m, x, out: self.each("audio_tower*.out", out.last_hidden_state))
        elif leaf == "rel_pos_enc" or leaf == "relative_k_proj":
            yield module.register_forward_hook(lambda m, x, out: self.alike(name, out))
        elif leaf in ("layer0", "layer1"):
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{name}.out", out[0]))
        elif leaf in ("feed_forward1", "feed_forward2", "lconv1d"):
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{name}.out", out))
        elif self.is_point(name):
            yield module.register_forward_hook(lambda m, x, out: self.each(name, out))
        layer = name.rpartition(".")[0]
        if leaf == "self_attn":
            yield module.register_forward_pre_hook(lambda *_: self.enter(name))
            yield module.register_forward_hook(lambda m, x, out: self.frame_map("probs", out[1]))
        if leaf == "post":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{layer}.context", x[0]))
        if leaf == "lconv1d":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{layer}.after_attention", x[0]))
        if leaf == "depthwise_conv1d":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{layer}.glu", x[0].transpose(1, 2)))

    def hear(self, module, args):
        """The tower begins on the batch of all clips."""
        self.batch = list(zip(self.names["audio"], args[1].bool(), strict=True))

    def before_softmax(self, original):
        def softmax(x, *args, **kwargs):
            if x.dim() == 5:  # of the audio tower; what the mask hides reads as 0, as in our point
                hidden = self.config.audio.attention_invalid_logits_value
                self.frame_map("scores", x.masked_fill(x == hidden, 0))
            return original(x, *args, **kwargs)

        return softmax

    def frame_map(self, point, blocked):
        """One map of one layer of the audio tower.  B N blocks chunk context -> for each clip N U R"""
        banded = in_a_band(blocked, self.config.audio.attention_context_left)
        for (suffix, real), piece in zip(self.batch, banded, strict=True):
            self.put(f"{self.layer}.{point}", suffix, piece[:, : real[::4].sum()])
