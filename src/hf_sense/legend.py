"""The words that the page and both reports share: what marks and figures mean, how a sense is called, what was cut.

It reads nothing and draws nothing; ``hf_sense.page`` shows the marks, and a test holds docs/explore.md to the same words.
"""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """A mark and its meaning.

    Attributes:
        name: the mark in words.
        sample: how it looks, as HTML.
        meaning: a sentence or two.
        needs: what the page must have to show it: ``"two"`` models, a ``"corpus"``, a ``"text"``; empty for all pages.
    """

    name: str
    sample: str
    meaning: str
    needs: str = ""


def _svg(shapes: str) -> str:
    return f'<svg class="hs-sample" viewBox="0 0 40 24" aria-hidden="true">{shapes}</svg>'


_CIRCLE = '<circle cx="{x}" cy="12" r="{r}"/>'
_MARK = f'<g class="hs-mark hs-c1">{_CIRCLE}<text x="{{x}}" y="12">2</text></g>'
_CROSS = "M13 6l12 12m0 -12l-12 12"
SENSES = (
    "Each token counts its senses from 1; the id after it is the sense's row in the dictionary, by which a model's sense_ids "
    "name it. So sense 2 of 7, id 10423, is the second of its token's seven senses and row 10423."
)
MARKS = (
    Mark(
        "number and colour",
        '<span class="hs-token hs-c1">bank<sub>2</sub></span>',
        "The token's chosen sense. Each token counts its own senses from 1, as a rule the most frequent first; the eleventh has "
        "the first one's colour again.",
        "text",
    ),
    Mark(
        "dashed edge",
        '<span class="hs-token hs-c1 hs-unsure">bank<sub>2</sub></span>',
        "The chosen sense has less than half of the choice.",
        "text",
    ),
    Mark(
        "dotted edge",
        '<span class="hs-token hs-none">bank</span>',
        "A token without senses: it did not occur in the dictionary's corpus, and keeps its own vector in a model.",
        "text",
    ),
    Mark(
        "small letters",
        '<span class="hs-token hs-c1 hs-special">[CLS]<sub>2</sub></span>',
        "A special token, which the tokenizer put there.",
        "text",
    ),
    Mark(
        "ring",
        '<span class="hs-token hs-c1 hs-pressed">bank<sub>2</sub></span>',
        "The token whose senses are shown.",
        "text",
    ),
    Mark(
        "≠ and a number",
        '<span class="hs-token hs-c1">bank<sub>2</sub><span class="hs-differs">≠3</span></span>',
        "The models differ: the other one chooses the sense with that number.",
        "two",
    ),
    Mark(
        "grey text",
        '<span class="hs-unread">and so on</span>',
        "It was not read, because the text has more tokens than the model takes.",
        "text",
    ),
    Mark("sense 2 of 7, id 10423", '<span class="hs-facts">id 10423</span>', SENSES),
    Mark(
        "bar",
        '<span class="hs-c1"><span class="hs-bar"><i style="width:60%"></i></span></span>',
        "A sense's share: of the choice at a token of a text, of the occurrences at a token by itself.",
    ),
    Mark(
        "circle with a number",
        _svg(_MARK.format(x=20, r=10)),
        "A sense on the plane; the larger, the more occurrences stand behind it.",
    ),
    Mark(
        "line from a number",
        _svg(f'<g class="hs-base hs-c1">{_CIRCLE.format(x=8, r=5)}<line x1="8" y1="12" x2="30" y2="12"/></g>')
        .replace("</svg>", _MARK.format(x=30, r=9) + "</svg>"),
        "The number stands aside, so that numbers do not cover each other; its line leads to the sense.",
    ),
    Mark(
        "dot",
        _svg('<circle class="hs-dot hs-c1" cx="20" cy="12" r="4"/>'),
        "An occurrence in the corpus, in the colour of the sense that it picks.",
        "corpus",
    ),
    Mark(
        "cross",
        _svg(f'<g class="hs-here"><path d="{_CROSS}"/><path d="{_CROSS}"/></g>'),
        "Where the chosen token of your text lies, for the model that is named beside it.",
        "text",
    ),
    Mark(
        "arrows at the edges",
        '<span class="hs-axis">→ ↑</span>',
        "The two main directions and the share of the variance that each holds: what looks near in them may not be.",
    ),
)  # fmt: skip

TEXTS = (
    "Each token carries the number of its sense. A dashed edge: less than half of the choice. A dotted edge: no senses. Choose a "
    "token with the mouse, or with Tab, arrow keys and Enter."
)
FIGURES = (
    "Occurrences are those of the dictionary's own corpus, from which the senses were made. Spread is the mean squared distance "
    "of a sense's occurrences to its vector; mean spread counts each sense as often as it occurred."
)
CONTEXTS = "The contexts of a sense are the occurrences in the corpus that lie nearest to it, of those that pick it."
NO_CORPUS = "Contexts come from a corpus, and none was given."
NO_READER = "Contexts come from a corpus that a model reads, and no model was given."
NO_SENSES = "No senses; the token did not occur in the dictionary's corpus."
LOOKING = "Looking for contexts in the corpus …"
NOT_DRAWN = "Only the tokens under the heading “Tokens” have a plane and contexts here; --token, or tokens in Python, names more."
# Under a plane, until a mark is pointed at.
HINT = "Point at a mark, or move to one with Tab and the arrow keys, to read its context."
HINT_ALONE = "Point at a mark, or move to one with Tab and the arrow keys, to read how often the sense occurred."


def marks_for(*, texts: bool, two: bool, corpus: bool) -> list[Mark]:
    """The marks that a page can show, which has texts, two models, a corpus, or not."""
    has = {"": True, "text": texts, "two": texts and two, "corpus": corpus}
    return [mark for mark in MARKS if has[mark.needs]]


def plane_words(*, corpus: bool) -> str:
    """What the marks of a plane mean, of those that a picture without a text has."""
    shown = [mark for mark in marks_for(texts=False, two=False, corpus=corpus) if "svg" in mark.sample]
    return " ".join(f"{mark.name[0].upper()}{mark.name[1:]}: {mark.meaning}" for mark in shown)


def sense_words(local: int, number: int, sense_id: int) -> str:
    """A sense by its number among the token's own, from 0, and by its row in the dictionary."""
    return f"sense {local + 1} of {number}, id {sense_id}"


def times(count: int) -> str:
    """So many occurrences."""
    return f"{count:,} occurrence{'' if count == 1 else 's'}"


def cut_words(read: int, left_out: int) -> str:
    """That a text was cut at the model's limit; numbers of tokens, special ones included."""
    return f"The text has {read + left_out:,} tokens, and the model takes {read:,}: {left_out:,} were not read."


def characters_words(taken: int, characters: int) -> str:
    """That a text is longer than a page takes."""
    return f"The text has {characters:,} characters, and the page takes the first {taken:,}."


def corpus_words(texts: int, cut: int, longest: int, most: int) -> str:
    """What contexts come from.

    Args:
        texts: in the corpus.
        cut: how many of them were longer.
        longest: than so many tokens.
        most: so many of the texts that hold a token are read for it.
    """
    said = f"Contexts come from {texts:,} text{'' if texts == 1 else 's'}"
    if cut:
        said += f", of which {cut:,} {'was' if cut == 1 else 'were'} longer than {longest:,} tokens and cut there"
    more = f" At most {most:,} of those that hold a token are read for it." if most < texts else ""
    return f"{said}.{more}"


def ambiguous_words(occurrences: int, a_sense: int) -> str:
    """What the table of ambiguous tokens holds."""
    return (
        f"Of those with at least {occurrences} occurrences, and {a_sense} a sense; whole words first, special tokens not at all. "
        "Apart: the mean squared distance of its senses, by their counts, to their common mean: what one vector a token would "
        "lose."
    )
