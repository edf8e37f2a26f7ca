"""The ``hf-sense`` command: build, convert, evaluate; the rest are in ``cli_train``, ``cli_look`` and ``cli_share``.

It reads arguments and files and prints; the work is done by the modules that it calls. Those import torch, so they are
imported inside the commands: ``--help`` does not wait for them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense import cli_look, cli_share, cli_train
from hf_sense.cli_input import DATA_HELP, check_model, check_no_model, check_output, fail, labels_of, load, print_table
from hf_sense.cli_plan import plan, show_plan
from hf_sense.cli_train import AttentionName

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sense dictionaries for Transformers.",
)


_AdapterOption = Annotated[
    list[str] | None, typer.Option("--adapter", help="PEFT adapter to merge into a decoder; may be given again.")
]
_AttentionOption = Annotated[AttentionName, typer.Option(help="Of a decoder.")]
_InstructionOption = Annotated[str | None, typer.Option(help="Stands before each text that the teacher reads.")]
_ChatOption = Annotated[bool, typer.Option("--chat", help="Wrap texts by the teacher's chat template.")]


class DtypeName(str, Enum):
    """How senses are stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class RecipeName(str, Enum):
    """Named settings of a build."""

    default = "default"
    paper = "paper"
    words = "words"


class MetricName(str, Enum):
    """How a hidden state picks a sense."""

    l2 = "l2"
    cosine = "cosine"
    dot = "dot"


class MethodName(str, Enum):
    """How a token's vectors are clustered."""

    kmeans = "kmeans"
    spherical_kmeans = "spherical_kmeans"
    markov = "markov"
    markov_full = "markov_full"
    paper = "paper"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; bad input ends in one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    command = typer.main.get_command(app)
    try:
        return int(command.main(args=arguments, prog_name="hf-sense", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        print("hf-sense: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("click", "typer") or isinstance(
            error, (ValueError, OSError, ImportError)
        ):
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            print(f"hf-sense: {' '.join(message.split())}", file=sys.stderr)
            return int(getattr(error, "exit_code", 2) or 2) if not isinstance(error, OSError) else 2
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("hf-sense"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Sense dictionaries for Transformers."""


@app.command()
def build(
    teacher: Annotated[str, typer.Option(help="The encoder or decoder: a folder or an id on the Hub.")],
    dataset: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the dictionary.")],
    text_column: Annotated[
        str, typer.Option(help="Column of the texts; two, with a comma between, for pairs.")
    ] = "text",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="What --metric and --method are where they are not given: l2 and kmeans; dot and the paper's method; or, "
            "for the meanings of words, cosine and spherical_kmeans."
        ),
    ] = RecipeName.default,
    max_senses: Annotated[
        str | None,
        typer.Option(help='Most senses a token: a number, "n/10", "sqrt", or "n/10,100"; 20, with --budget 100.'),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help='Most senses of all tokens together, or the size of the file, "3MB".')
    ] = None,
    codes: Annotated[int | None, typer.Option(help="Codes a level, shared by all tokens; none if not given.")] = None,
    code_levels: Annotated[int, typer.Option(help="Codes that a hidden state takes, one a level.")] = 1,
    metric: Annotated[MetricName | None, typer.Option(help="How a hidden state picks a sense. By default l2.")] = None,
    method: Annotated[
        MethodName | None, typer.Option(help="How a token's vectors are clustered. By default kmeans.")
    ] = None,
    min_occurrences: Annotated[int, typer.Option(help="Tokens with fewer keep each vector as a sense.")] = 1,
    min_count: Annotated[int, typer.Option(help="Tokens that occur fewer times get no senses.")] = 1,
    max_occurrences: Annotated[int, typer.Option(help="Distinct occurrences of a token that are sampled.")] = 1000,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.")] = None,
    special_tokens: Annotated[bool, typer.Option(help="Give tokens such as [CLS] senses too.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts the teacher reads at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the sample and of the clustering.")] = 0,
    dtype: Annotated[DtypeName, typer.Option(help="Of the stored senses.")] = DtypeName.float32,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the data set as it comes, without a copy in the cache.")
    ] = False,
    max_memory: Annotated[
        str | None, typer.Option(help='What the process may take, "4GB"; past it work lies in --work-dir.')
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Unfinished work, found again by the same command; OUTPUT.work if not given.")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Samples that --keep-samples wrote: add these texts to those.")
    ] = None,
    keep_samples: Annotated[
        Path | None, typer.Option(help="Folder for the sample and its embeddings, to add texts to later.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a long build.")] = False,
    adapter: _AdapterOption = None,
    attention: _AttentionOption = AttentionName.auto,
    instruction: _InstructionOption = None,
    chat: _ChatOption = False,
) -> None:
    """Build a sense dictionary from a teacher and a corpus."""
    check_no_model(output)
    check_model(teacher)
    texts, column = load(dataset, split, text_column, stream)
    import torch

    from hf_sense import register
    from hf_sense.build_checks import checked_options
    from hf_sense.builder import build_dictionary
    from hf_sense.teacher import load_teacher

    register()
    most: int | str | None = int(max_senses) if max_senses and max_senses.isdigit() else max_senses
    given: dict[str, Any] = {
        "recipe": recipe.value,
        "max_senses": most,
        "budget": int(budget) if budget and budget.isdigit() else budget,
        "codes": codes,
        "code_levels": code_levels,
        "metric": metric and metric.value,
        "method": method and method.value,
        "min_occurrences": min_occurrences,
        "min_count": min_count,
        "max_occurrences": max_occurrences,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": getattr(torch, dtype.value),
        "max_memory": max_memory,
    }
    _, options = checked_options(**given)
    source = load_teacher(
        teacher, adapters=adapter or (), attention=attention.value, instruction=instruction, chat=chat
    )
    work_dir = work_dir or output.with_name(output.name + ".work")
    texts = show_plan(
        source, texts, work_dir, yes, text_column=column, max_senses=options["max_senses"], max_length=max_length,
        max_occurrences=max_occurrences, batch_size=batch_size, dtype=given["dtype"], max_memory=max_memory,
    )  # fmt: skip
    dictionary = build_dictionary(
        source,
        texts,
        text_column=column,
        max_length=max_length,
        special_tokens=special_tokens,
        work_dir=work_dir,
        update=update,
        keep_samples=keep_samples,
        corpus_name=dataset,
        **given,
    )
    from hf_sense.ranks import processes

    if processes().is_main_process:  # each rank holds the same dictionary
        dictionary.save_pretrained(output)
        dictionary.tokenizer.save_pretrained(output)  # type: ignore[union-attr]
        print_table(dictionary.summary())
        print(f"Saved in {output}")


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="Folder of the dictionary.")],
    output: Annotated[Path, typer.Argument(help="Folder for the converted one.")],
    dtype: Annotated[DtypeName, typer.Option(help="Of its senses.")],
) -> None:
    """Store a dictionary's senses in another dtype."""
    check_no_model(output)
    if output.resolve() == folder.resolve():
        fail(f"{output} is the dictionary itself, whose senses would be lost. Give another folder.")
    from hf_sense.folders import is_sense_model

    if is_sense_model(folder):
        fail(
            f"{folder} is a sense model, and convert takes a dictionary. Convert the dictionary that it was distilled from, and "
            "give that to hf-sense distill --dictionary."
        )
    import torch

    from hf_sense.dictionary import SenseDictionary

    converted = SenseDictionary.from_pretrained(folder).to(getattr(torch, dtype.value))
    converted.save_pretrained(output)
    if (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(str(folder)).save_pretrained(output)
    print_table(converted.summary())
    print(f"Saved in {output}")


def evaluate(
    model: Annotated[str, typer.Option(help="The student: a folder or an id on the Hub.")],
    train: Annotated[str, typer.Option(help=DATA_HELP)],
    test: Annotated[str, typer.Option(help=DATA_HELP)],
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    samples_per_label: Annotated[int, typer.Option(help="Labelled texts a class in each draw.")] = 8,
    draws: Annotated[int, typer.Option(help="Random draws.")] = 10,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Classify with a model's text vectors, by the protocol of MTEB and by a probe on all training texts."""
    check_model(model)
    if samples_per_label < 1 or draws < 1:
        fail(f"--samples-per-label and --draws should be at least 1, but are {samples_per_label} and {draws}.")
    if output is not None:
        check_output(output.absolute().parent)
    from hf_sense.corpus import iterate_texts

    sides = []
    for name, default in ((train, "train"), (test, "test")):
        data, column = load(name, default, text_column)
        sides.append((list(iterate_texts(data, column)), labels_of(data, label_column, name)))
    rarest, number = min(Counter(sides[0][1]).items(), key=lambda pair: pair[1])
    if number < samples_per_label:
        fail(
            f"Label {rarest!r} has {number} texts in {train}, and a draw takes {samples_per_label} a label. Give "
            f"--samples-per-label {number}, or leave that label out of both files."
        )
    if unknown := set(sides[1][1]) - set(sides[0][1]):
        fail(f"{test} has labels that {train} lacks, such as {min(unknown)!r}.")
    from transformers import AutoModel, AutoTokenizer

    from hf_sense import register
    from hf_sense.evaluation import embed, few_shot_accuracy, linear_probe
    from hf_sense.files import write_text

    register()
    loaded, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    if loaded.config.model_type != "sense":
        fail(f"{model} is a {loaded.config.model_type} model, not a sense model; hf-sense distill makes one.")
    vectors = [embed(loaded, tokenizer, texts, max_length=max_length) for texts, _ in sides]
    arguments = (vectors[0], sides[0][1], vectors[1], sides[1][1])
    score = few_shot_accuracy(*arguments, samples_per_label=samples_per_label, draws=draws)
    figures = {
        "few_shot_accuracy": score.mean,
        "few_shot_spread": score.spread,
        "samples_per_label": samples_per_label,
        "draws": draws,
        "linear_probe_accuracy": linear_probe(*arguments),
        "test_texts": len(sides[1][1]),
    }
    print_table(figures)
    if output is not None:
        write_text(output, json.dumps(figures, indent=2) + "\n")


_FREE = {"allow_extra_args": True, "ignore_unknown_options": True}  # any field of their configurations is an option
_TRAINING: tuple[Callable[..., None], ...] = (cli_train.distill, cli_train.adapt)
_OTHERS: tuple[Callable[..., None], ...] = (
    plan, evaluate, cli_look.inspect, cli_look.report, cli_look.explore, cli_share.export, cli_share.push,
)  # fmt: skip
for _command in _TRAINING:
    app.command(context_settings=_FREE)(_command)
for _command in _OTHERS:
    app.command()(_command)
