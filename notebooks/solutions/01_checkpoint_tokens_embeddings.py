"""Solutions of 01_checkpoint_tokens_embeddings.ipynb: each stands in for the cell that begins with the same line."""


# exercise 1.1: the bytes of one tensor
def tensor_bytes(raw, name):
    """raw: the whole file  ->  the bytes that belong to `name`"""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    start, stop = header[name]["data_offsets"]
    return raw[8 + length + start : 8 + length + stop]


# exercise 1.2: float32 from the 16 bits of a bfloat16 (shift them up; .view reads the same bits as another type)
def from_bits(bits):
    """bits: uint16, any shape  ->  float32"""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# exercise 1.3: the 16 bits of the nearest bfloat16
def to_bits(x):
    """x: float32  ->  uint16"""
    u = x.view(np.uint32)
    odd = (u >> 16) & 1
    return ((u + 0x7FFF + odd) >> 16).astype(np.uint16)


# exercise 1.4: merge one word
rank = {pair: r for r, pair in enumerate(merges)}


def bpe(word):
    """word: as 'Ġmouse'  ->  its pieces, a list of strings"""
    pieces = list(word)
    while True:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: rank.get(pair, math.inf), default=None)
        if best not in rank:
            return pieces
        i = pairs.index(best)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


# exercise 1.5: look up and scale
def embed(ids, w):
    """ids: T   w: V D, bfloat16  ->  T D, float32"""
    return w[ids].astype(np.float32) * np.float32(math.sqrt(w.shape[1]))
