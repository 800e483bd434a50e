"""Show it all on the bundled checkpoint: a story, every activation against Transformers' own, and a broken twin."""

from pathlib import Path

from numgemma.checkpoint import SINGLE, open_checkpoint
from numgemma.cli.inspect import describe
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.words import render, verdict
from numgemma.dump import read_dump
from numgemma.model import load
from numgemma.opening import DATA
from numgemma.surgery.writer import companions, copied, in_one, write_checkpoint
from numgemma.weights.safetensors import open_safetensors

REFERENCE = DATA / "demo" / "transformers.safetensors"  # what Transformers made of the bundled checkpoint
BROKEN = "layers.3.self_attn.k_norm.weight"


def add_arguments(parser):
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where files go (default: demo)")


def run(args):
    args.out.mkdir(parents=True, exist_ok=True)
    model = load("tiny")
    tell_story(model)
    reference = read_dump(REFERENCE)
    ours = compare(model, reference, args.out / "numgemma.safetensors", verdict)
    broken = break_twin(args.out / "broken-twin")
    found = compare(load(broken), reference, args.out / "broken-twin.safetensors", render)
    draw(found, args.out / "broken-twin.png")
    return 0 if (ours.verdict, found.verdict, found.first) == ("same", "differs", BROKEN.removesuffix(".weight")) else 1


def tell_story(model):
    found = describe("tiny")
    kinds = [spec["kind"].split("_")[0] for spec in found["layers"]]
    title(f"The bundled Gemma 4: {found['parameters']['total']:,} parameters, {len(kinds)} layers ({', '.join(kinds)})")
    prompt = "Once upon"
    new = model.generate(model.tokenizer.encode(prompt), max_new_tokens=80)
    print(prompt + model.tokenizer.decode(new))


def compare(model, reference, out, told):
    """Record the reference's prompt, save the dump, and print what `told` makes of the comparison."""
    title(f"{model.checkpoint.folder.name}: {len(reference)} recorded points against Transformers'")
    dump = model.record(reference.meta["ids"], text=reference.meta["text"])
    dump.save(out)
    found = diff(reference, dump)
    print(told(found))
    return found


def break_twin(folder):
    """A copy of the bundled checkpoint in which one norm was converted by Gemma 3's convention, 1 + weight."""
    tiny, name = DATA / "tiny", f"model.{BROKEN}"
    tensors = open_safetensors(tiny / SINGLE).tensors
    kept = {stored: copied(x) for stored, x in tensors.items()}
    bent = in_one(tensors[name] + tensors[name].dtype.type(1))
    write_checkpoint(folder, open_checkpoint(tiny).config, kept | {name: bent}, companions(tiny), force=True)
    return folder


def draw(found, path):
    from numgemma.debug.report.depth import plot

    plot(found, path, "The broken twin against Transformers")
    print(f"\nThe picture: {path}")


def title(text):
    print(f"\n== {text}\n")
