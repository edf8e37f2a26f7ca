"""What a page answers: a text in, its tokens as HTML out; a chosen token in, its panel out.

It keeps the last texts' readings, so that choosing a token runs no model again. It knows no server; see ``hf_sense.explore``.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from html import escape

from hf_sense.legend import LOOKING, NO_CORPUS, characters_words, sense_words
from hf_sense.page import panel_html, sides_html
from hf_sense.plane import Planes, TokenPlane
from hf_sense.reading import Reader, Reading

_KEY = re.compile(r"s([01])-(\d{1,9})-(\d{1,9})")
_KEPT = 8  # readings of texts, with their hidden states
SIDES = ("Teacher", "Student")  # titles of two readings side by side
_CHARACTERS = 20_000  # of a text; a model takes a few thousand tokens at most


class Answers:
    """Readings and panels of texts, as HTML.

    Args:
        readers: one model, or a teacher and a student of one dictionary.
        planes: of that dictionary.
    """

    def __init__(self, readers: Sequence[Reader], planes: Planes) -> None:
        if not 1 <= len(readers) <= 2:
            raise ValueError(f"A page reads with one model or two, but got {len(readers)}.")
        self.readers = list(readers)
        self.planes = planes
        self._kept: OrderedDict[str, list[Reading]] = OrderedDict()
        self._lock = threading.Lock()

    def readings(self, text: str) -> list[Reading]:
        """Each model's reading of a text, cut at 20,000 characters."""
        text = text[:_CHARACTERS]
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        found = [reader.read(text) for reader in self.readers]
        with self._lock:
            self._kept[text] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def text(self, text: str, key: str = "") -> str:
        """The tokens of a text as buttons; that of ``key`` is pressed if it still stands there."""
        readings, said = self.readings(text), ""
        if len(text) > _CHARACTERS:
            said = f'<p class="hs hs-cut" role="status">{escape(characters_words(_CHARACTERS, len(text)))}</p>'
        return said + sides_html(list(zip(SIDES, readings)), chosen=key if self._place(text, key) else "")

    def panel(self, text: str, key: str, *, search: bool = False) -> str:
        """The panel of a token.

        Args:
            text: the text that it stands in.
            key: of its button; one that does not fit the text gives nothing.
            search: look for contexts if they are not at hand, which takes a second or more.
        """
        place = self._place(text, key)
        if place is None:
            return ""
        side, position = place
        readings = self.readings(text)
        token = readings[side].tokens[position]
        plane, note = None, ""
        if token.local >= 0:
            plane = self.planes.find(token.token_id) if search else self.planes.known(token.token_id)
            if plane is None:
                note = LOOKING
            elif not self.planes.has_corpus:
                note = NO_CORPUS
        return token_panel(self.readers, readings, side, position, plane, note=note)

    def waits(self, text: str, key: str) -> bool:
        """Whether the panel of ``key`` would gain by a search."""
        place = self._place(text, key)
        if place is None:
            return False
        token = self.readings(text)[place[0]].tokens[place[1]]
        return token.local >= 0 and self.planes.known(token.token_id) is None

    def _place(self, text: str, key: str) -> tuple[int, int] | None:
        """The reading and the position that a key means, if the text still has that token there."""
        match = _KEY.fullmatch(key or "")
        if match is None:
            return None
        side, position, token_id = (int(part) for part in match.groups())
        readings = self.readings(text)
        if side >= len(readings) or position >= len(readings[side].tokens):
            return None
        return (side, position) if readings[side].tokens[position].token_id == token_id else None


def token_panel(
    readers: Sequence[Reader],
    readings: Sequence[Reading],
    side: int,
    position: int,
    plane: TokenPlane | None,
    *,
    key: str = "",
    note: str = "",
) -> str:
    """The panel of one token of a text.

    Args:
        readers: one model, or a teacher and a student.
        readings: what each made of the text.
        side: whose token it is, 0 or 1.
        position: of the token in the text.
        plane: its plane; ``None`` if there is none to show.
        key: of the token's button, where a page holds all of its panels.
        note: stands at the panel's end.
    """
    token = readings[side].tokens[position]
    views = readers[side].senses_at(readings[side], position)
    names = ["this token"] if len(readers) == 1 else [name.lower() for name in SIDES]
    here = []
    if plane is not None:
        rows = (reading.hidden[position : position + 1] for reading in readings)
        here = [(name, plane.project(row)[0].numpy()) for name, row in zip(names, rows)]
    said = []
    if len(readings) == 2 and token.local >= 0:
        other = readings[1 - side].tokens[position]
        same = "the same sense"
        if other.sense_id != token.sense_id:
            same = sense_words(other.local, other.num_senses, other.sense_id)
        said = [
            f"This is the {names[side]}'s choice",
            f"The {names[1 - side]} chooses {same}, {other.share:.0%} of the choice",
        ]
    return panel_html(token, views, plane, here, key=key, note=note, said=said)
