"""Continue a text, and print it as it comes; a canvas as it settles."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from numgemma import machine, ops
from numgemma.cli.common import (
    add_adapter,
    add_backend,
    add_image_mask,
    add_prompt,
    read_prompts,
    use_backend,
    warn_of_length,
)
from numgemma.cli.denoising import (
    Canvases,
    add_sampler,
    given_settings,
    ids_of,
    refuse_sampler,
    write_canvases,
    writes_canvases,
)
from numgemma.cli.numbers import finite, whole_number
from numgemma.errors import InputError
from numgemma.generate import Memory
from numgemma.model import PRECISIONS, load
from numgemma.prompt.tokenizer import stream
from numgemma.speculative import Draft, Round
from numgemma.surgery.loops import described, repetition

SCHEMA = "numgemma.generate/1"


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    add_prompt(parser, inputs=False)
    parser.add_argument(
        "--max-new-tokens", type=whole_number, metavar="N", help="default: 100; of canvases, what their settings say"
    )
    parser.add_argument("--temperature", type=finite, default=0.0, metavar="X", help="0, the default, is greedy")
    parser.add_argument("--top-k", type=whole_number, metavar="K", help="sample among the K likeliest tokens")
    parser.add_argument("--top-p", type=finite, metavar="P", help="sample among the likeliest tokens of probability P")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of the sampling; default: 0")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past a stop token")
    parser.add_argument("--show-special", action="store_true", help="print <|channel>, <turn|> and the like too")
    parser.add_argument("--loops", action="store_true", help="say how much the new text repeats itself")
    parser.add_argument("--print-ids", action="store_true", help="print the new token ids alone on the last line")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32")
    add_image_mask(parser)
    add_backend(parser, "numba where it is installed")
    parser.add_argument(
        "--chunk",
        type=whole_number,
        metavar="N",
        default=Memory.chunk,
        help="tokens of the prompt that run at once; default: 2048",
    )
    parser.add_argument(
        "--cache-dtype", choices=("float32", "bfloat16"), help="of keys and values (default: the run's)"
    )
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="a drafter of this model: faster, the same text")
    parser.add_argument(
        "--draft-tokens", type=whole_number, metavar="K", help="tokens that it guesses for one pass; default: 4"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the new ids, and what was drafted, as JSON")
    parser.add_argument("--verbose", action="store_true", help="say what computes, and how fast each part was")
    add_sampler(parser)


TOKENS = 100  # that are written where --max-new-tokens is not given


def run(args):
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {args.max_new_tokens}; it should be at least 1.")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}; it should be at least 0.")
    if args.temperature == 0 and (args.top_k or args.top_p):
        raise InputError("--top-k and --top-p choose among sampled tokens; give a --temperature above 0 with them.")
    if args.draft_tokens is not None and args.drafter is None:
        raise InputError("--draft-tokens is an option of --drafter; name the drafter of this model.")
    memory = Memory(args.chunk, args.cache_dtype and PRECISIONS[args.cache_dtype])
    use_backend(args, ops.fastest(PRECISIONS[args.precision]))
    model = load(args.ckpt, args.precision, args.image_mask, adapters=args.adapter)
    if writes_canvases(model):
        return run_canvases(args, model, memory)
    refuse_sampler(args)
    args.max_new_tokens = TOKENS if args.max_new_tokens is None else args.max_new_tokens
    model.check_part("enter", "makes no text token by token")
    if args.verbose:
        print("\n".join([machine.engine(), *machine.warnings()]), file=sys.stderr)
    (prompt,) = read_prompts(args, model)
    warn_of_length(prompt.ids, model, args.max_new_tokens)
    sampling = model.sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed)
    new: list[int] = []
    clock: list[float] = [time.perf_counter()]  # when the run began, and when each token was there
    rounds: list[Round] = []
    given = (args.max_new_tokens, sampling, args.ignore_eos, prompt.media, memory)
    ids = noted(found(model, prompt.ids, drafter(args), given, rounds), new, clock)
    if model.checkpoint.tokenizer or (model.checkpoint.folder / "tokenizer.json").exists():
        begin = "" if args.chat is not None else prompt.text or model.tokenizer.decode(prompt.ids)
        show(begin, stream(model.tokenizer, ids, args.show_special))
    elif args.print_ids or args.json:
        list(ids)
    else:
        raise InputError(f"{model.checkpoint.folder}: has no tokenizer.json to write text with; add --print-ids.")
    seconds = time.perf_counter() - clock[0]
    if args.verbose:
        print("\n".join([told(len(prompt.ids), clock), *drafts_told(rounds)]), file=sys.stderr)
    print(f"{len(new)} tokens in {seconds:.1f} s, {len(new) / seconds:.1f} a second", file=sys.stderr)
    finish(args, Text(new, rounds))
    return 0


def run_canvases(args, model, memory):
    """The same for a model that writes canvases."""
    if args.verbose:
        print("\n".join([machine.engine(), *machine.warnings()]), file=sys.stderr)
    (prompt,) = read_prompts(args, model)
    how = given_settings(args, model)
    warn_of_length(prompt.ids, model, how.max_new_tokens)
    steps = write_canvases(args, model, prompt, memory)
    finish(args, Canvases(ids_of(steps, how), steps))
    return 0


def finish(args, found):
    """What is asked for beside the text."""
    if args.loops:
        print(described(repetition(found.ids)))
    if args.print_ids:
        print(",".join(map(str, found.ids)))
    if args.json:
        from numgemma.cli.report import write_json  # who writes no file does not wait for the reports

        write_json(args.json, found)


@dataclass(frozen=True)
class Text:
    """What was generated, for --json."""

    ids: list[int]
    rounds: list[Round]

    def to_json(self):
        return {"schema": SCHEMA, "ids": self.ids, "rounds": [asdict(one) for one in self.rounds]}


def drafter(args) -> Draft | None:
    if args.drafter is None:
        return None
    return Draft(load(args.drafter, args.precision), Draft.tokens if args.draft_tokens is None else args.draft_tokens)


def found(model, ids, draft, given, rounds):
    """New ids as they are found; with a drafter, what each round was goes to `rounds`."""
    if draft is None:
        yield from model.continued(ids, *given)
        return
    for one in model.rounds(ids, draft, *given):
        rounds.append(one)
        yield from one.kept


def drafts_told(rounds):
    """How many drafts were right, and what that saved."""
    checked = rounds[1:]  # the first is the prompt's
    drafted = sum(len(one.drafted) for one in checked)
    if not drafted:
        return []
    accepted, kept = sum(one.accepted for one in checked), sum(len(one.kept) for one in checked)
    share = f"{accepted} of {drafted} drafts accepted, {accepted / drafted:.0%}"
    return [f"{share}; {kept / len(checked):.2f} tokens a pass of the target"]


def noted(ids, into, clock):
    for i in ids:
        into.append(i)
        clock.append(time.perf_counter())
        yield i


def told(tokens, clock):
    """How fast each part was, and the memory it took."""
    first, last = clock[1], clock[-1]
    parts = [f"prompt: {tokens} tokens in {first - clock[0]:.2f} s, {tokens / (first - clock[0]):.1f} a second"]
    if len(clock) > 2:
        parts.append(f"then {(len(clock) - 2) / (last - first):.2f} tokens a second")
    memory = ", ".join(f"{what} {size:.2f} GB" for what, size in machine.peak_memory().items())
    return "; ".join([*parts, f"memory: {memory}"] if memory else parts)


def show(begin, pieces):
    print(begin, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
