"""The words before a text that is to become a vector: by task, as the model was trained with them.

They stand in the files of sentence-transformers, if a checkpoint has them; else they are those of the release.  A
checkpoint whose files ask for another end than the mean of all tokens, brought to length 1, is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numgemma.config import typed
from numgemma.errors import InputError, meant
from numgemma.incoming import parse_json, read_bytes, read_object

CORRECT = "correct the file, or leave it out"
ASKED = {  # task: what stands behind "task: "
    "query": "search result",
    "SearchQuery": "search result",
    "Retrieval": "search result",
    "Retrieval-query": "search result",
    "Reranking": "search result",
    "BitextMining": "search result",
    "QuestionAnswering": "question answering",
    "FactChecking": "fact checking",
    "CodeRetrieval": "code retrieval",
    "InstructionRetrieval": "code retrieval",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
    "SentenceSimilarity": "sentence similarity",
    "STS": "sentence similarity",
    "PairClassification": "sentence similarity",
    "Summarization": "sentence similarity",
}
UNTITLED = "title: none | text: "
RELEASED = {name: f"task: {task} | query: " for name, task in ASKED.items()}
RELEASED |= dict.fromkeys(("document", "Document", "Retrieval-document"), UNTITLED)


def read_tasks(folder: Path, width: int) -> tuple[Mapping[str, str], str | None]:
    """The words of each task, and the task that is meant where none is named.  width: numbers of the model's vector

    Raises InputError where the files of sentence-transformers contradict what is computed here.
    """
    modules, told = folder / "modules.json", folder / "config_sentence_transformers.json"
    if modules.exists():
        check_modules(modules, width)
    if not told.exists():
        return RELEASED, None
    raw = read_object(told, CORRECT)
    prompts = typed(raw.get("prompts") or {}, dict[str, str], f"{told}: prompts")
    usual = typed(raw.get("default_prompt_name"), str | None, f"{told}: default_prompt_name")
    if usual is not None and usual not in prompts:
        raise InputError(f"{told}: default_prompt_name is {usual!r:.60}, which is none of its prompts; {CORRECT}.")
    return prompts or RELEASED, usual


def tasks_refused(folder: Path, width: int) -> list[str]:
    """The sentence with which `read_tasks` refuses, if it does."""
    try:
        read_tasks(folder, width)
    except InputError as problem:
        return [str(problem)]
    return []


def check_modules(path: Path, width: int):
    """The steps are those that are computed: Transformer, Pooling, Normalize."""
    listed = typed(parse_json(read_bytes(path, CORRECT), str(path), CORRECT), list[dict], str(path))
    kinds = [str(one.get("type")).rpartition(".")[2] for one in listed]
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        raise InputError(
            f"{path}: lists {', '.join(kinds)[:200] or 'nothing'}; numgemma computes Transformer, Pooling, Normalize "
            f"alone; {CORRECT}."
        )
    place = typed(listed[1].get("path"), str, f"{path}: the path of Pooling")
    if place in ("", ".", "..") or Path(place).name != place:
        raise InputError(f"{path}: the path of Pooling is {place!r:.60}, which is no folder beside it; {CORRECT}.")
    check_pooling(path.parent / place / "config.json", width)


def check_pooling(path: Path, width: int):
    """The mean over all tokens, those of the prompt too, of vectors as wide as the model's."""
    raw = read_object(path, CORRECT)
    if (mode := pooling(raw, path)) != "mean":
        raise InputError(f"{path}: pools by {mode}; EmbeddingGemma 2 is the mean over all tokens; {CORRECT}.")
    if not raw.get("include_prompt", True):
        raise InputError(f"{path}: leaves the prompt out; EmbeddingGemma 2's mean has its tokens too; {CORRECT}.")
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if raw.get(key, width) != width:
            raise InputError(f"{path}: {key} is {raw[key]!r:.60}, the model's vectors have {width} numbers; {CORRECT}.")


def pooling(raw: dict[str, Any], path: Path) -> str:
    """How a file of either spelling says that tokens become one vector."""
    if "pooling_mode" in raw:
        return str(raw["pooling_mode"])[:60]
    modes = [key.removeprefix("pooling_mode_") for key, on in raw.items() if key.startswith("pooling_mode_") and on]
    names = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    return " and ".join(names)[:200] or "nothing"


def words_of(task: str | None, title: str | None, prompts: Mapping[str, str], usual: str | None = None) -> str:
    """What stands before a text.  task: the name of one; None: the usual one, or no words   title: of a document"""
    task = usual if task is None else task
    if task is not None and task not in prompts:
        offered = meant(task, prompts) or f"; this checkpoint has {', '.join(prompts)[:400]}"
        raise InputError(f"'{task:.60}' is no prompt{offered}.")
    words = "" if task is None else prompts[task]
    if title is None:
        return words
    if not words.startswith("title: none"):
        raise InputError("A title is that of a document; give it with the prompt 'document'.")
    return words.replace("none", title, 1)
