"""What the commands read and check before they work: data sets, teachers, folders.

The commands stand in ``hf_sense.cli`` and ``hf_sense.cli_look``. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
DATA_HELP = (
    "A folder or file (json, jsonl, csv, parquet, txt), a data set's id on the Hub, or - for a text a line of stdin."
)


def teacher_of(dictionary: Any, name: str) -> Any:
    """The teacher at ``name``, with the attention, adapters and wrappers with which the dictionary was built."""
    from hf_sense.teacher import load_teacher

    made = dictionary.metadata.get("teacher", {})
    adapters = [
        part["name"] if part["revision"] is None else f"{part['name']}@{part['revision']}"
        for part in made.get("adapters", [])
    ]
    from transformers import AutoConfig

    from hf_sense import register

    register()  # a student that is given in its teacher's place is refused by name
    kind = AutoConfig.from_pretrained(name).model_type
    if made.get("model_type", kind) != kind and not adapters:
        fail(
            f"The dictionary was built with {made.get('name')}, a {made['model_type']} model, and {name} is a {kind} model. Give "
            "that teacher, or build a dictionary with this one."
        )
    if not made.get("attn_implementation"):  # an encoder
        return load_teacher(name)
    return load_teacher(
        name, adapters=adapters, attention=made["attention"], instruction=made["instruction"], chat=made["chat"]
    )


def load(name: str, split: str, text_column: str, stream: bool = False) -> tuple[Any, str | list[str]]:
    """One split of a data set, and the column or columns of its texts, checked.

    With ``stream`` it is read as it comes, without a copy in the cache; from standard input it always is, once.
    """
    import datasets

    if name == "-":
        return _lines(), "text"

    path = Path(name)
    files: list[str] = []
    if path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if file.suffix in _FORMATS and split in file.stem)
        files = files or sorted(str(file) for file in path.iterdir() if file.suffix in _FORMATS)
        if not files:
            fail(f"The folder {name} holds no {', '.join(_FORMATS)} file.")
    elif path.is_file():
        if path.suffix not in _FORMATS:
            fail(f"{name} should end in one of {', '.join(_FORMATS)}.")
        files = [name]
    elif path.suffix in _FORMATS or name.count("/") > 1 or name.startswith(("/", ".")):
        fail(f"There is no file or folder {name!r}.")
    if files and not any(Path(file).stat().st_size for file in files):
        fail(f"{name} is empty.")
    try:
        if files:
            data = datasets.load_dataset(
                _FORMATS[Path(files[0]).suffix], data_files={split: files}, split=split, streaming=stream
            )
        else:
            data = datasets.load_dataset(name, split=split, streaming=stream)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        fail(f"{name} could not be read as a data set: {cause}")
    columns = [part.strip() for part in text_column.split(",")]
    names = data.column_names if data.column_names is not None else list(next(iter(data), {}))  # a stream may not say
    if missing := [column for column in columns if column not in names]:
        fail(f"{name} has no column {missing[0]!r}; it has {', '.join(names)}. Name it with --text-column.")
    return data, columns[0] if len(columns) == 1 else columns


def _lines() -> Iterator[str]:
    from hf_sense.ranks import processes

    if processes().num_processes > 1:
        fail("Standard input reaches one process alone. Give several a file.")
    for line in sys.stdin:
        yield line.rstrip("\n")


def labels_of(data: Any, column: str, name: str) -> list[str]:
    """The labels of a column as strings; none may be missing."""
    if column not in data.column_names:
        fail(f"{name} has no column {column!r}; it has {', '.join(data.column_names)}. Name it with --label-column.")
    values = list(data[column])
    if None in values:
        fail(f"Row {values.index(None)} of {name} has no label in column {column!r}. Fill it in, or leave the row out.")
    return [str(value) for value in values]


def check_model(name: str) -> None:
    """A path that is not there is no id on the Hub either, and a dictionary is no model."""
    if (name.count("/") > 1 or name.startswith(("/", "."))) and not Path(name).is_dir():
        fail(f"There is no folder {name!r}.")
    from hf_sense.folders import is_dictionary

    if is_dictionary(name):
        fail(f"{name} is a sense dictionary, and a model is wanted here. Give the folder of a model.")


def check_output(output: Path) -> None:
    """Long work must not end at a folder that cannot be written to."""
    there = output.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        fail(f"--output should be a folder, but {there} is a file.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        fail(f"--output {output} cannot be written to: {error.strerror}. Give another folder.")


def check_no_model(output: Path) -> None:
    """As ``check_output``, for a dictionary: it would take the place of the card of a model in that folder."""
    check_output(output)
    if (output / "config.json").is_file():
        fail(f"--output {output} holds a model, as its config.json says. Give the dictionary a folder of its own.")


def print_table(figures: dict[str, Any], file: TextIO | None = None) -> None:
    """Prints names and figures in two columns."""
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):<{width}}  {shown}", file=file)


def fail(message: str) -> NoReturn:
    """Ends the command with one line on standard error."""
    raise ValueError(message)
