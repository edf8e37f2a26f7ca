"""The commands that look into a dictionary or a sense model: inspect, report, explore.

They read arguments and print; what is shown is found by ``hf_sense.contexts``, ``hf_sense.report`` and ``hf_sense.explore``.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense.cli_input import DATA_HELP, check_model, check_output, fail, load, teacher_of
from hf_sense.legend import sense_words, times

_Folder = Annotated[Path, typer.Argument(help="Folder of a dictionary, or of a sense model.")]
_Corpus = Annotated[str | None, typer.Option(help="Texts to take contexts from: " + DATA_HELP)]
_Column = Annotated[str, typer.Option(help="Column of the texts.")]
_Split = Annotated[str, typer.Option(help="Split of the corpus.")]
_Teacher = Annotated[str | None, typer.Option(help="The teacher, where it is not at the name in the dictionary.")]
_Student = Annotated[str | None, typer.Option(help="A sense model of the dictionary, to put beside the teacher.")]
_Most = Annotated[int, typer.Option(help="Take at most so many texts of the corpus.")]


def inspect(
    folder: _Folder,
    token: Annotated[str, typer.Argument(help="A token of the vocabulary, or its id.")],
    corpus: _Corpus = None,
    text_column: _Column = "text",
    split: _Split = "train",
    contexts: Annotated[int, typer.Option(help="Contexts a sense.")] = 3,
    teacher: _Teacher = None,
) -> None:
    """Show a token's senses: their counts, and the contexts nearest to each."""
    if contexts < 1:
        fail(f"--contexts should be at least 1, but is {contexts}.")
    if teacher is not None:
        check_model(teacher)
    dictionary, tokenizer = _dictionary_of(folder, teacher=teacher)
    name = teacher or dictionary.metadata.get("teacher", {}).get("name")
    if tokenizer is None or (corpus is not None and not name):
        fail(f"The dictionary in {folder} does not name its teacher. Give it with --teacher.")
    from hf_sense.vocabulary import token_id_of

    known = tokenizer.get_vocab()
    token_id = int(token) if token.isdigit() and token not in known else token_id_of(token, tokenizer)
    senses = dictionary.senses_of(token_id)
    print(f"{tokenizer.convert_ids_to_tokens(token_id)!r} (id {token_id}): {len(senses.sense_ids)} senses")
    if dictionary.codes is not None:
        levels, codes = dictionary.codes.levels, dictionary.codes.num_codes
        print(f"  to the chosen sense is added one of {codes} codes that all tokens share, at each of {levels} levels")
    found: dict[int, list[str]] = {}
    if corpus is not None and len(senses.sense_ids):
        texts, _ = load(corpus, split, text_column)
        from hf_sense.contexts import contexts_of, occurrences_of
        from hf_sense.corpus import encode_corpus
        from hf_sense.coverage import CoverageMeter, token_coverage

        loaded = teacher_of(dictionary, name)
        limit = min(dictionary.metadata.get("sampling", {}).get("max_length") or loaded.max_length, loaded.max_length)
        encoded = encode_corpus(loaded.form.joined(list(texts[text_column]), loaded.tokenizer), loaded.tokenizer, limit)
        occurrences = occurrences_of(loaded, encoded, token_id)
        nearest = contexts_of(dictionary, token_id, senses, occurrences, contexts)
        found = {sense.sense_id: sense.contexts for sense in nearest}
        if len(occurrences.vectors):
            meter = CoverageMeter(dictionary)
            meter.look_up(
                occurrences.vectors.new_full((len(occurrences.vectors),), token_id).long(), occurrences.vectors
            )
            print(f"  {meter.result().words()}")
        if warning := token_coverage(dictionary, encoded.input_ids).warning():
            print(f"  {warning}")
    for local, (sense_id, count) in enumerate(zip(senses.sense_ids, senses.counts.tolist())):
        named = sense_words(local, len(senses.sense_ids), sense_id)
        print(f"  {named}: {times(count)}, spread {float(senses.spread[local]):.3g}")
        for context in found.get(sense_id, []):
            print(f"    {context}")


def report(
    folder: _Folder,
    output: Annotated[Path, typer.Option(help="Folder for report.md, report.html and pictures.")],
    corpus: _Corpus = None,
    text_column: _Column = "text",
    split: _Split = "train",
    token: Annotated[
        list[str] | None,
        typer.Option(help="A token to draw, or its id; may be given again; the most ambiguous if not given."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to colour by its senses; may be given again; some of the corpus if not given."),
    ] = None,
    teacher: _Teacher = None,
    student: _Student = None,
    most_texts: _Most = 20_000,
) -> None:
    """Write what a dictionary holds as Markdown, and as one HTML file that needs no server."""
    check_output(output)
    readers = _readers(folder, teacher, student) if corpus or text or student else []
    dictionary, tokenizer = (readers[0].dictionary, readers[0].tokenizer) if readers else _dictionary_of(folder)
    encoded, samples = _encode(readers[0], corpus, split, text_column, most_texts) if corpus else (None, [])
    from hf_sense.report import most_ambiguous, write_report

    known = tokenizer.get_vocab()
    chosen: list[int | str] = [int(one) if one.isdigit() and one not in known else one for one in token or []]
    path = write_report(
        dictionary,
        output,
        tokenizer=tokenizer,
        corpus=encoded,
        tokens=chosen or most_ambiguous(dictionary, 6, tokenizer),
        teacher=readers[0] if readers else None,
        student=readers[1] if len(readers) > 1 else None,
        texts=text or samples[:3],
        max_texts=200,
    )
    print(f"Written: {path} and {path.with_suffix('.html')}")


def explore(
    folder: _Folder,
    corpus: _Corpus = None,
    text_column: _Column = "text",
    split: _Split = "train",
    text: Annotated[str | None, typer.Option(help="Stands in the text field at first.")] = None,
    teacher: _Teacher = None,
    student: _Student = None,
    most_texts: _Most = 20_000,
    host: Annotated[str, typer.Option(help="Address to listen at; the default is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(help="Port to listen at; a free one from 7860 on if not given.")] = None,
) -> None:
    """Serve a page on this machine: type a text, see each token's sense and what stands behind it."""
    from hf_sense.explore import SAMPLE, gradio_module, serve

    gradio_module()  # before the long work
    readers = _readers(folder, teacher, student)
    encoded, _ = _encode(readers[0], corpus, split, text_column, most_texts) if corpus else (None, [])
    from hf_sense.answers import Answers
    from hf_sense.page import heading
    from hf_sense.plane import Planes

    planes = Planes(readers[0].dictionary, readers[0], encoded)
    page, address = serve(
        Answers(readers, planes), heading(readers, planes.about), text or SAMPLE, host=host, port=port
    )
    print(f"The page is at {address} (Ctrl-C stops it)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def _readers(folder: Path, teacher: str | None, student: str | None) -> list[Any]:
    """What reads: the teacher of a dictionary, or a sense model; two of them where both are asked for."""
    from hf_sense.reading import Reader

    if _is_sense_model(folder):
        if student is not None:
            fail(f"{folder} is a sense model itself: give --teacher to put its teacher beside it, not --student.")
        own = _student(folder)
        if teacher is None:
            return [own]
        check_model(teacher)
        return [Reader.of_teacher(teacher_of(own.dictionary, teacher), own.dictionary), own]
    dictionary, _ = _dictionary_of(folder, named=False)
    name = teacher or dictionary.metadata.get("teacher", {}).get("name")
    if not name:
        fail(f"The dictionary in {folder} does not name its teacher. Give it with --teacher.")
    check_model(name)
    if student is not None and not _is_sense_model(Path(student)):
        fail(f"--student should be the folder of a sense model, but {student} is none; hf-sense distill makes one.")
    first = Reader.of_teacher(teacher_of(dictionary, name), dictionary)
    return [first] if student is None else [first, _student(Path(student), dictionary)]


def _student(folder: Path, dictionary: Any = None) -> Any:
    from transformers import AutoModel, AutoTokenizer

    from hf_sense import register
    from hf_sense.reading import Reader

    register()
    model = AutoModel.from_pretrained(str(folder))
    return Reader.of_student(model, AutoTokenizer.from_pretrained(str(folder)), str(folder), dictionary)


def _dictionary_of(folder: Path, named: bool = True, teacher: str | None = None) -> tuple[Any, Any]:
    """The dictionary of a folder, or of the sense model in it, and, if tokens are to be named, its tokenizer."""
    if _is_sense_model(folder):
        own = _student(folder)
        return own.dictionary, own.tokenizer
    from transformers import AutoTokenizer

    from hf_sense.dictionary import SenseDictionary

    dictionary = SenseDictionary.from_pretrained(folder)
    beside = (folder / "tokenizer_config.json").is_file()
    name = str(folder) if beside else teacher or dictionary.metadata.get("teacher", {}).get("name")
    return dictionary, AutoTokenizer.from_pretrained(name) if named and name else None


def _is_sense_model(folder: Path) -> bool:
    from hf_sense.folders import saved_config

    kind = saved_config(folder).get("model_type")
    if kind == "folded_sense":
        from hf_sense.reading import folded_words

        fail(folded_words(str(folder)))
    return bool(kind == "sense")


def _encode(reader: Any, corpus: str, split: str, text_column: str, most: int) -> tuple[Any, list[str]]:
    """The corpus, tokenized as the reader's texts are, and its first texts that are short enough to show."""
    if most < 1:
        fail(f"--most-texts should be at least 1, but is {most}.")
    data, column = load(corpus, split, text_column)
    from hf_sense.corpus import encode_corpus, iterate_texts

    texts = list(itertools.islice(iterate_texts(data, column), most))
    limit = reader.dictionary.metadata.get("sampling", {}).get("max_length") or reader.max_length
    encoded = encode_corpus(
        reader.form.joined(texts, reader.tokenizer), reader.tokenizer, min(limit, reader.max_length)
    )
    return encoded, [text for text in texts if isinstance(text, str) and 20 <= len(text) <= 400]
