"""The ``hf-sense`` command: build, convert, distill, adapt, evaluate; the rest are in ``cli_look`` and ``cli_share``.

It reads arguments and files and prints; the work is done by the modules that it calls. Those import torch, so they are
imported inside the commands: ``--help`` does not wait for them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense import cli_look, cli_share
from hf_sense.cli_input import DATA_HELP, check_model, check_no_model, check_output, fail, load, print_table, teacher_of

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sense dictionaries for Transformers.",
)


class AttentionName(str, Enum):
    """How a decoder's tokens see each other."""

    auto = "auto"
    bidirectional = "bidirectional"
    causal = "causal"


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
    max_senses: Annotated[
        str, typer.Option(help='Most senses a token: a number, "n/10", "sqrt", or "n/10,100".')
    ] = "20",
    metric: Annotated[MetricName, typer.Option(help="How a hidden state picks a sense.")] = MetricName.l2,
    method: Annotated[MethodName, typer.Option(help="How a token's vectors are clustered.")] = MethodName.kmeans,
    min_occurrences: Annotated[int, typer.Option(help="Tokens with fewer keep each vector as a sense.")] = 1,
    max_occurrences: Annotated[int, typer.Option(help="Distinct occurrences of a token that are sampled.")] = 1000,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.")] = None,
    special_tokens: Annotated[bool, typer.Option(help="Give tokens such as [CLS] senses too.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts the teacher reads at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the sample and of the clustering.")] = 0,
    dtype: Annotated[DtypeName, typer.Option(help="Of the stored senses.")] = DtypeName.float32,
    work_dir: Annotated[
        Path | None, typer.Option(help="Unfinished work, found again by the same command; OUTPUT.work if not given.")
    ] = None,
    adapter: _AdapterOption = None,
    attention: _AttentionOption = AttentionName.auto,
    instruction: _InstructionOption = None,
    chat: _ChatOption = False,
) -> None:
    """Build a sense dictionary from a teacher and a corpus."""
    check_no_model(output)
    check_model(teacher)
    texts, column = load(dataset, split, text_column)
    import torch

    from hf_sense import register
    from hf_sense.builder import build_dictionary
    from hf_sense.teacher import load_teacher

    register()
    source: Any = teacher
    if adapter or instruction or chat or attention is not AttentionName.auto:
        source = load_teacher(
            teacher, adapters=adapter or (), attention=attention.value, instruction=instruction, chat=chat
        )
    dictionary = build_dictionary(
        source,
        texts,
        text_column=column,
        max_senses=int(max_senses) if max_senses.isdigit() else max_senses,
        metric=metric.value,
        method=method.value,
        min_occurrences=min_occurrences,
        max_occurrences=max_occurrences,
        max_length=max_length,
        special_tokens=special_tokens,
        batch_size=batch_size,
        seed=seed,
        dtype=getattr(torch, dtype.value),
        work_dir=work_dir or output.with_name(output.name + ".work"),
        corpus_name=dataset,
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def distill(
    context: typer.Context,
    teacher: Annotated[str, typer.Option(help="The model that the dictionary was built with; it knows the adapters.")],
    dictionary: Annotated[Path, typer.Option(help="Folder of the dictionary.")],
    dataset: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    num_hidden_layers: Annotated[int, typer.Option(help="The student keeps the teacher's first so many layers.")] = 2,
    pooling: Annotated[str, typer.Option(help="How the student makes a text's vector.")] = "frequency",
    label_column: Annotated[str | None, typer.Option(help="Also fit a linear classifier on this column.")] = None,
) -> None:
    """Distil a student that chooses the teacher's senses.

    Any field of SenseDistillationConfig is an option too, for example --learning-rate 1e-3 --max-steps 900.
    """
    check_output(output)
    check_model(teacher)
    data, _ = load(dataset, split, text_column)
    labels = [] if label_column is None else _labels(data, label_column, dataset)
    if label_column is not None and len(set(labels)) < 2:
        fail(f"A classifier needs two labels or more, but column {label_column!r} has only {labels[0]!r}.")
    from hf_sense import register
    from hf_sense.dictionary import SenseDictionary
    from hf_sense.modeling_sense import SenseModelForSequenceClassification
    from hf_sense.trainer import SenseDistillationConfig, SenseDistillationTrainer

    register()
    fields = _config_fields(context.args, SenseDistillationConfig, "distill")
    args = SenseDistillationConfig(output_dir=str(output), text_column=text_column, **fields)
    senses = SenseDictionary.from_pretrained(dictionary)
    loaded = teacher_of(senses, teacher)
    student = SenseModelForSequenceClassification.from_teacher(
        loaded, senses, num_hidden_layers=num_hidden_layers, pooling=pooling
    )
    trainer = SenseDistillationTrainer(student, args, teacher=loaded, train_dataset=data)
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(str(output)) if output.is_dir() else None
    if checkpoint:
        _check_checkpoint(Path(checkpoint), student)
        print(f"Going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if label_column is not None:
        from hf_sense.evaluation import fit_linear_head

        fit_linear_head(student, loaded.tokenizer, data[text_column], labels, max_length=args.max_length)
    trainer.save_model(str(output))
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"Saved in {output}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def adapt(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="The decoder: a folder or an id on the Hub.")],
    dataset: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the adapters.")],
    text_column: Annotated[
        str, typer.Option(help="Column of the texts; two, with a comma between, for pairs that belong together.")
    ] = "text",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    attention: Annotated[
        AttentionName, typer.Option(help="How the decoder will be used.")
    ] = AttentionName.bidirectional,
) -> None:
    """Train adapters that make a decoder an encoder of texts, the LLM2Vec way, without labels.

    Any field of AdaptationConfig is an option too, for example --mntp-steps 100 --simcse-steps 100.
    """
    if attention is AttentionName.auto:
        fail("--attention should be bidirectional or causal.")
    check_output(output)
    check_model(base)
    texts, column = load(dataset, split, text_column)
    from hf_sense.adaptation import adapt_decoder
    from hf_sense.adaptation_trainers import AdaptationConfig

    fields = _config_fields(context.args, AdaptationConfig, "adapt")
    report = adapt_decoder(
        base,
        texts,
        output,
        text_column=column,
        attention=attention.value,
        args=AdaptationConfig(output_dir=str(output), **fields),
    )
    from hf_sense.ranks import processes

    if not processes().is_main_process:
        return
    for stage in ("mntp", "simcse"):
        if stage in report:
            figures = report[stage]
            print(
                f"{stage}: best after {figures['best_step']} of {figures['steps']} steps, held-out loss "
                f"{figures['held_out_loss_before']:.3f} to {figures['held_out_loss_after']:.3f}"
            )
    print(f"Saved in {output}")


@app.command()
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
        sides.append((list(iterate_texts(data, column)), _labels(data, label_column, name)))
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
    from hf_sense.storage import write_text

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


def _config_fields(arguments: list[str], config_class: Any, command: str) -> dict[str, Any]:
    """Reads ``--learning-rate 1e-3`` and the like by the fields of the configuration."""
    from transformers import HfArgumentParser

    known = {field.name for field in dataclasses.fields(config_class)}
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for option in options:
        if option[2:].replace("-", "_").removeprefix("no_") not in known and option[2:].replace("-", "_") not in known:
            fail(
                f"There is no option {option}. See hf-sense {command} --help and the fields of {config_class.__name__}."
            )
    parser = HfArgumentParser(config_class)
    parser.exit_on_error = False
    for action in parser._actions:
        action.required = False
    try:
        values, rest = parser.parse_known_args(arguments)
    except (Exception, SystemExit) as error:
        fail(f"An option of {config_class.__name__} could not be read: {error}")
    if rest:
        fail(f"These arguments were not understood: {' '.join(rest)}.")
    names = {option[2:].replace("-", "_") for option in options}
    names |= {name.removeprefix("no_") for name in names if name not in known}
    return {name: getattr(values, name) for name in names if name in known}


def _labels(data: Any, column: str, name: str) -> list[str]:
    """The labels of a column as strings; none may be missing."""
    if column not in data.column_names:
        fail(f"{name} has no column {column!r}; it has {', '.join(data.column_names)}. Name it with --label-column.")
    values = list(data[column])
    if None in values:
        fail(f"Row {values.index(None)} of {name} has no label in column {column!r}. Fill it in, or leave the row out.")
    return [str(value) for value in values]


def _check_checkpoint(folder: Path, student: Any) -> None:
    """Going on from a checkpoint of another student, or from one that has ended, is refused."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    saved = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").is_file() else {}
    )
    mine = json.loads(student.config.to_json_string(use_diff=False))
    layers = [config.get("backbone_config", {}).get("num_hidden_layers") for config in (saved, mine)]
    senses = [config.get("dictionary_fingerprint") for config in (saved, mine)]
    if saved and (layers[0] != layers[1] or senses[0] != senses[1]):
        fail(
            f"{folder.parent} holds the checkpoints of another student: {layers[0]} layers and dictionary {senses[0]}; now "
            f"{layers[1]} layers and {senses[1]}. Give another --output, or remove that one."
        )
    if state["global_step"] >= state["max_steps"] and (folder.parent / "config.json").is_file():
        fail(
            f"{folder.parent} holds a student whose training ended after {state['global_step']} steps. Give another --output, "
            "or remove that one to train again."
        )


for _command in (cli_look.inspect, cli_look.report, cli_look.explore, cli_share.export, cli_share.push):
    app.command()(_command)
