"""What 12B's embedders compute in Transformers, picture by picture and clip by clip: they take the place of towers.

Transformers runs all pictures of a prompt as one padded batch, and all clips as another.  Here the padding is cut off
and the batch taken apart, under the names that families/unified/unified.py gives.
"""

from contextlib import ExitStack, contextmanager

from numgemma.prompt.media import clips, frames, images, suffixes

SIDES = ("embed_vision", "embed_audio")


class Embedders:
    """Takes apart what the embedders' modules return, and hands each piece to keep(name, tensor, axes)."""

    def __init__(self, config, graph, media, keep):
        self.graph, self.keep = graph, keep
        real = {"images": media.image_position_ids, "frames": media.video_position_ids}
        self.rows = {name: [] if places is None else places[..., 0] >= 0 for name, places in real.items()}
        sound = media.input_features_mask
        self.rows["clips"] = [] if sound is None else sound.astype(bool)
        pictures = suffixes(len(images(media) + frames(media)))
        first_frame = len(images(media))
        self.waiting = {  # of each embedder, the batches that it will be given: a suffix and the real rows of each
            "embed_vision": [
                list(zip(pictures[:first_frame], self.rows["images"], strict=True)),
                list(zip(pictures[first_frame:], self.rows["frames"], strict=True)),
            ],
            "embed_audio": [list(zip(suffixes(len(clips(media))), self.rows["clips"], strict=True))],
        }
        self.batch = []  # that runs

    @contextmanager
    def listening(self, hf):
        """Hooks on the modules of both embedders, for as long as this lasts."""
        with ExitStack() as stack:
            for name, module in hf.named_modules():
                side, _, rest = name.removeprefix("model.").partition(".")
                for handle in self.hook(module, side, rest) if side in SIDES else ():
                    stack.callback(handle.remove)
            yield

    def hook(self, module, side, rest):
        """Register what one module of an embedder calls for."""
        if not rest:
            yield module.register_forward_pre_hook(lambda *_: self.begin(side))
        elif self.is_point(side, rest):
            yield module.register_forward_hook(lambda m, x, out: self.each(f"{side}*.{rest}", out))
        if rest == "pos_norm":
            yield module.register_forward_pre_hook(lambda m, x: self.each(f"{side}*.placed", x[0]))

    def is_point(self, side, rest):
        """Whether a module returns a point, of the first picture or clip; a wrapped linear does, its parts do not."""
        first = next((suffix for batch in self.waiting[side] for suffix, _ in batch), "")
        return f"{side}{first}.{rest}" in self.graph

    def begin(self, side):
        """An embedder begins on a batch of pictures, on the images or after them on the frames; or on all clips."""
        batches = self.waiting[side]
        while not batches[0]:
            batches.pop(0)
        self.batch = batches.pop(0)

    def each(self, name, x):
        """x: a padded batch."""
        for (suffix, real), piece in zip(self.batch, x, strict=True):
            point = name.replace("*", suffix)
            self.keep(point, piece[real], self.graph.axes(point))
