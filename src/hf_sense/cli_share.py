"""The commands that take a dictionary or a student out of the house: export, push.

They read arguments and print; the work is done by ``hf_sense.export`` and ``hf_sense.hub``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense.cli_input import check_model, check_output, fail


def export(
    model: Annotated[str, typer.Argument(help="The student: a folder or an id on the Hub.")],
    output: Annotated[Path, typer.Argument(help="The file, such as model.onnx.")],
    max_length: Annotated[int | None, typer.Option(help="Most tokens a text will have.")] = None,
) -> None:
    """Write a student as an ONNX file, for any batch and length; with its classifier, if it was saved with one."""
    check_model(model)
    check_output(output.absolute().parent)
    from hf_sense import register
    from hf_sense.export import export_onnx

    register()
    export_onnx(load_student(model).float(), output, max_length=max_length)
    print(f"Saved in {output}")


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a dictionary, or of a student.")],
    repo_id: Annotated[str, typer.Argument(help="The repository, such as org/name; made if it is missing.")],
    private: Annotated[bool, typer.Option(help="If it is made, make it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made from main if it is missing.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead.")] = False,
    license: Annotated[str | None, typer.Option(help="For the card, such as apache-2.0.")] = None,
) -> None:
    """Push a dictionary or a student to the Hub, with its card, in one commit. Log in with `hf auth login` first."""
    if not folder.is_dir():
        fail(f"There is no folder {str(folder)!r}.")
    from hf_sense import register
    from hf_sense.folders import JSON_NAME

    options: dict[str, Any] = {
        "private": private or None,
        "revision": revision,
        "commit_message": message,
        "create_pr": create_pr,
        "license": license,
    }
    if (folder / JSON_NAME).is_file():
        from hf_sense.dictionary import SenseDictionary

        commit = SenseDictionary.from_pretrained(folder).push_to_hub(repo_id, **options)
    else:
        from transformers import AutoTokenizer

        register()
        model = load_student(str(folder))
        tokenizer = None
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        commit = model.push_to_hub(repo_id, tokenizer=tokenizer, **options)
    print(f"Pushed to {commit.pr_url or commit.commit_url}")


def load_student(name: str) -> Any:
    """A sense model as it was saved, with its classifier if it has one."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type != "sense":
        fail(f"{name} is a {config.model_type} model, not a sense model; hf-sense distill makes one.")
    kinds = {model: auto for auto, model in config.auto_classes.items()}
    kind = getattr(transformers, kinds.get((config.architectures or ["SenseModel"])[0], "AutoModel"))
    return kind.from_pretrained(name)
