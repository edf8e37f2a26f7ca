"""The commands that train: distill, adapt.

They read arguments and files and print; the work is done by ``hf_sense.trainer`` and ``hf_sense.adaptation``, which are
imported inside the commands.
"""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense.cli_input import DATA_HELP, check_model, check_output, fail, labels_of, load, teacher_of


class AttentionName(str, Enum):
    """How a decoder's tokens see each other."""

    auto = "auto"
    bidirectional = "bidirectional"
    causal = "causal"


class BackboneName(str, Enum):
    """Students without a transformer."""

    selector = "selector"
    context = "context"


class SelectionName(str, Enum):
    """What stands in a hidden state's place."""

    hard = "hard"
    soft = "soft"
    straight_through = "straight_through"
    none = "none"


def distill(
    context: typer.Context,
    teacher: Annotated[str, typer.Option(help="The model that the dictionary was built with; it knows the adapters.")],
    dictionary: Annotated[Path, typer.Option(help="Folder of the dictionary.")],
    dataset: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    num_hidden_layers: Annotated[
        int | None, typer.Option(help="The student keeps the teacher's first so many layers. By default 2.")
    ] = None,
    backbone: Annotated[
        BackboneName | None,
        typer.Option(help="A student without a transformer instead; see docs/howto-small-students.md."),
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Of that one's embeddings and states. By default 64.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens that it sees around each, odd. By default 3.")] = None,
    selection: Annotated[
        SelectionName | None,
        typer.Option(help="What stands in a state's place: by default hard, or what the backbone is made for."),
    ] = None,
    learned_senses: Annotated[
        bool, typer.Option("--learned-senses", help="Train the senses too; see docs/howto-soft-selection.md.")
    ] = False,
    pooling: Annotated[str, typer.Option(help="How the student makes a text's vector.")] = "frequency",
    label_column: Annotated[str | None, typer.Option(help="Also fit a linear classifier on this column.")] = None,
) -> None:
    """Distil a student that chooses the teacher's senses.

    Any field of SenseDistillationConfig is an option too, for example --learning-rate 1e-3 --max-steps 900. A context table
    learns the teacher's states, so --backbone context sets --sense-weight 0 and --mse-weight 1 where they are not given; learned
    senses are pulled to them, so --learned-senses sets --sense-weight 0 and --replaced-weight 1.
    """
    if backbone is not None and num_hidden_layers is not None:
        fail(f"Give --num-hidden-layers or --backbone, not both: the {backbone.value} has no layers of the teacher.")
    if backbone is None and (hidden_size, window) != (None, None):
        fail("--hidden-size and --window are for --backbone selector or context: a teacher's layers have their own.")
    check_output(output)
    check_model(teacher)
    data, _ = load(dataset, split, text_column)
    labels = [] if label_column is None else labels_of(data, label_column, dataset)
    if label_column is not None and len(set(labels)) < 2:
        fail(f"A classifier needs two labels or more, but column {label_column!r} has only {labels[0]!r}.")
    from transformers import set_seed

    from hf_sense import register
    from hf_sense.dictionary import SenseDictionary
    from hf_sense.distillation_config import SenseDistillationConfig
    from hf_sense.modeling_sense import SenseModel, SenseModelForSequenceClassification
    from hf_sense.trainer import SenseDistillationTrainer

    register()
    fields = _config_fields(context.args, SenseDistillationConfig, "distill")
    if backbone is BackboneName.context:
        fields = {"sense_weight": 0.0, "mse_weight": 1.0} | fields
    if learned_senses:
        fields = {"sense_weight": 0.0, "replaced_weight": 1.0} | fields
    fields = {"save_seconds": None if fields.get("save_strategy") == "no" else 45.0} | fields
    shape: dict[str, Any] = {"num_hidden_layers": num_hidden_layers or 2}
    if backbone is not None:
        shape = {"backbone": backbone.value, "hidden_size": hidden_size, "window": window}
    if selection is not None:
        shape["selection"] = selection.value
    if learned_senses:
        shape["learned_senses"] = True
    args = SenseDistillationConfig(output_dir=str(output), text_column=text_column, **fields)
    senses = SenseDictionary.from_pretrained(dictionary)
    loaded = teacher_of(senses, teacher)
    set_seed(args.seed)  # new weights are drawn before the Trainer sets it
    # Without labels a classifier would stay as it was drawn, and nobody who loads it would be told.
    model_class = SenseModel if label_column is None else SenseModelForSequenceClassification
    student = model_class.from_teacher(loaded, senses, pooling=pooling, **shape)
    trainer = SenseDistillationTrainer(student, args, teacher=loaded, train_dataset=data)
    from hf_sense.checkpoints import last_checkpoint

    checkpoint = last_checkpoint(output)
    ended = checkpoint is not None and _check_checkpoint(Path(checkpoint), student)
    if checkpoint:
        print(f"Going on from {checkpoint}")
    if checkpoint and ended:
        trainer.load_checkpoint(checkpoint)  # stopped while it was saved
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    if label_column is not None:
        from hf_sense.evaluation import fit_linear_head

        fit_linear_head(student, loaded.tokenizer, data[text_column], labels, max_length=args.max_length)
    trainer.save_model(str(output))
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"Saved in {output}")


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


def _check_checkpoint(folder: Path, student: Any) -> bool:
    """Whether training had ended there. A checkpoint of another student, or of one that was saved whole, is refused."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    saved = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").is_file() else {}
    )
    mine = json.loads(student.config.to_json_string(use_diff=False))
    mine, theirs = _named_shape(mine), _named_shape(saved)
    if saved and mine != theirs:
        fail(
            f"{folder.parent} holds the checkpoints of another student: {theirs}; now {mine}. Give another --output, or remove "
            "that one."
        )
    ended = bool(state["global_step"] >= state["max_steps"])
    # The card is a student's last file; an older one is of a training that was shorter.
    card = folder.parent / "README.md"
    if ended and card.is_file() and card.stat().st_mtime >= (folder / "trainer_state.json").stat().st_mtime:
        fail(
            f"{folder.parent} holds a student whose training ended after {state['global_step']} steps. Give another --output, "
            "or remove that one to train again."
        )
    return ended


def _named_shape(config: dict[str, Any]) -> str:
    """What of a student's configuration its weights depend on, in words."""
    backbone = config.get("backbone_config", {})
    body = f"{backbone.get('num_hidden_layers')} layers"
    if backbone.get("model_type") == "sense_context_network":
        kind = "context table" if config.get("selection") == "none" else "selector"
        body = f"a {kind} of width {backbone['hidden_size']} and window {backbone['window']}"
    learned = "learned senses of " if config.get("learned_senses") else ""
    return f"{body} and {learned}dictionary {config.get('dictionary_fingerprint')}"
