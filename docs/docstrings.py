"""What the house's docstrings need to be read as the reference pages read them. Loaded by mkdocstrings, not by the package."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class HouseDocstrings(griffe.Extension):
    """One example is an examples section, ``Methods:`` is a list, and a field's ``help`` is its docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the sections that the parser takes for others."""
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            names = {"Example:": "Examples:", "Methods:": "Note: Methods"}
            text = "\n".join(names.get(line, line) for line in lines)
            if "Note: Methods" in text:
                text = re.sub(r"(?m)^    (`\w+`: )", r"    - \1", text)
            obj.docstring.value = text

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Takes ``field(default=..., metadata={"help": ...})`` apart."""
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and attr.docstring is None):
            return
        for keyword in node.value.keywords:
            if keyword.arg == "metadata":
                attr.docstring = griffe.Docstring(ast.literal_eval(keyword.value)["help"], parent=attr)
            elif keyword.arg == "default":
                attr.value = ast.unparse(keyword.value)
