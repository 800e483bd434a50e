"""Turn a prompt and its files into the arrays that enter the model: what Transformers' processor returns."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from numgemma.atomic import whole
from numgemma.cli.common import add_chat, add_text
from numgemma.cli.files import add_files, given_files, remark
from numgemma.families import read_config
from numgemma.incoming import read_object
from numgemma.opening import resolve
from numgemma.prompt.chat import chat_files, read_chat, render_chat
from numgemma.prompt.processor import join, place, read_processor
from numgemma.prompt.tokenizer import open_tokenizer


def add_arguments(parser):
    parser.add_argument(
        "ckpt", type=Path, metavar="CKPT", help="its config.json and tokenizer.json are read, its weights are not"
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    add_text(prompt, "text, with <|image|>, <|audio|>, <|video|> for the files")
    prompt.add_argument("--chat", type=Path, metavar="FILE.json", help="messages; - is standard input")
    add_files(parser)
    add_chat(parser.add_argument_group("options of --chat"))
    parser.add_argument(
        "-o", "--out", metavar="OUT.safetensors", required=True, type=Path, help="to write; --inputs reads it"
    )


def run(args):
    path = resolve(args.ckpt)
    folder = path if path.is_dir() else path.parent
    config = read_config(read_object(folder / "config.json", "name a checkpoint"), str(folder / "config.json"))
    arrays = prepared(args, folder, config, open_tokenizer(folder))
    write(arrays, args.out)
    tokens = arrays["input_ids"].shape[1]
    types = next(x for name, x in arrays.items() if name.endswith("token_type_ids"))
    print(f"{args.out}: {tokens} tokens, {(types > 0).sum()} of them soft")
    for name, x in arrays.items():
        print(f"  {name:<22}{x.dtype!s:>8}  {list(x.shape)}")
    return 0


def prepared(args, folder, config, tokenizer):
    """The arrays of the prompt or the chat that the options name."""
    if args.chat is None:
        files = given_files(args)
        text, encode = place(args.prompt, files, config, tokenizer), tokenizer.encode
    else:
        chat = read_chat(args.chat, args.tools)
        files = chat_files(chat.messages, given_files(args), args.chat)
        text = render_chat(folder, **vars(chat), thinking=args.thinking, template=args.template)
        encode = tokenizer.encode_rendered
    settings = read_processor(folder)
    arrays = join(text, files, settings, config, tokenizer, encode, args.soft_tokens)
    remark(files, lambda: settings)
    return arrays


def write(arrays, path):
    with whole(path) as partial:
        partial.write_bytes(save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
