"""The words of the report.  Those in capitals are states, and stand on a page only where a point has them."""

GLOSSARY = {
    "point": "One named tensor of the run. Its name is that of the weight that made it: layers.3.self_attn.q_norm is "
    "what Transformers' module of that name returns.",
    "relative error": "The size of A - B divided by the size of A, as root mean squares. 1e-2 is one percent.",
    "worst token, worst channel": "The same for the one token, or the one channel (a head and a lane together), where "
    "it is largest. One dead channel of 1536 hides in the error of the whole tensor.",
    "scale B/A": "The number that A must be multiplied with to come nearest to B. 1.05 at cosine 1 is a lost factor.",
    "floor": "How large an error rounding alone makes at this point, measured by runs that round and sum otherwise.",
    "× floor": "The largest in units of the floor of four errors: of the tensor, of its worst token, of its worst "
    "channel, and of its scale, which is 1 where nothing is lost.",
    "tolerance": "What is allowed where no floor was measured: a table by precision.",
    "local error": "The error of one step, recomputed from what the engine itself recorded as the input to that step.",
    "inherited error": "What a point has because its inputs were already wrong.",
    "full attention": "A layer that sees all earlier tokens; the others see a window of the last few.",
    "KL": "Kullback-Leibler divergence between what two runs would say next, in nats: 0 where they agree.",
    "margin": "How far the likeliest token lies above the one that the other run prefers, in logits.",
    "T N H": "The axes of a tensor, one letter each: T tokens, N query heads, K key/value heads, H lanes of a "
    "head, D model width, F feed-forward width, V vocabulary, L layers, P per-layer width, E experts, J chosen ones.",
    "SAME": "Within the tolerances.",
    "DIFFERS": "Beyond the tolerances.",
    "BIT-EXACT": "Every bit is equal.",
    "NOISE": "Up to 1.5 times the floor: what rounding makes.",
    "SUSPECT": "1.5 to 5 times the floor: look at it when nothing else is left.",
    "FAULT": "More than 5 times the floor, and not handed on by an earlier point.",
    "INHERITED": "Off, and so is a point that it is computed from.",
    "TIE": "Another choice, of an expert or a token, between candidates that lie closer together than the noise.",
    "NON-FINITE": "A NaN or an infinity.",
    "MISSING": "In one dump only, although the other should have it.",
    "UNMEASURED": "In one dump only, or no value is known on both sides. Not a pass.",
    "NOT COMPARABLE": "The shapes or the axes differ.",
}
