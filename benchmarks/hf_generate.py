"""Continues token ids with Transformers, as `numgemma generate --print-ids` does: what processes.py measures of it.

python benchmarks/hf_generate.py SHAPE_DIR f32|bf16 THREADS 2,105,9 NEW
"""

import sys
from itertools import islice

import torch
from engines import continued, load_transformers

folder, precision, threads, ids, new = sys.argv[1:]
torch.set_num_threads(int(threads))
hf = load_transformers(folder, precision)
with torch.inference_mode():
    for i in islice(continued(hf, torch.tensor([[int(i) for i in ids.split(",")]])), int(new)):
        print(i, flush=True)
