"""The page's fragments: nothing of a text becomes markup, colours can be read, sense numbers stand in words."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sense import SenseDictionary
from hf_sense.contexts import SenseContexts
from hf_sense.legend import HINT, HINT_ALONE, MARKS, marks_for
from hf_sense.page import DARK, LIGHT, describe, document, legend_html, panel_html, sides_html, style, token_html
from hf_sense.plane import TokenPlane, plane_of
from hf_sense.plane_picture import plane_html
from hf_sense.reading import Reading, SenseView, TokenReading

BAD = "<script>alert(1)</script>\"'&${1+1}{{x}}"


def token(text="bank", local=2, **fields):
    made = {
        "token_id": 7, "token": text, "text": text, "gap": " ", "special": False, "sense_id": 40 + local if local >= 0 else -100,
        "local": local, "num_senses": 12 if local >= 0 else 0, "count": 41, "occurrences": 1200, "share": 0.82,
    }  # fmt: skip
    return TokenReading(**{**made, **fields})


def reading(*tokens):
    return Reading(list(tokens), torch.zeros(len(tokens), 4))


def plane(texts=("a [bank] b",), senses=3):
    places = np.arange(2 * senses, dtype=np.float32).reshape(senses, 2)
    dots = np.zeros((len(texts), 2), np.float32)
    contexts = [SenseContexts(40 + local, 5, list(texts)[:1], [0.0]) for local in range(senses)] if texts else []
    return TokenPlane(
        7,
        40,
        places,
        [5] * senses,
        [0.25] * senses,
        [0.5, 0.2],
        dots,
        [0] * len(texts),
        list(texts),
        contexts,
        lambda rows: rows,
    )


class Tags(HTMLParser):
    """The tags and the attributes of a page; fails on a tag that is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags(html):
    parser = Tags()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_texts_names_and_contexts_are_escaped():
    """A story with a script in it would run in the reader's browser."""
    shown = token(BAD)
    parts = [
        sides_html([("Teacher", reading(shown))]),
        sides_html([(BAD, reading(shown)), (BAD, reading(token(BAD, 1)))]),
        sides_html([("Teacher", Reading([token(gap=BAD)], torch.zeros(1, 4), tail=BAD))]),
        panel_html(
            shown, [SenseView(2, 41, 0.82, 0.0)], plane([BAD]), [(BAD, np.zeros(2))], key=BAD, note=BAD, said=[BAD]
        ),
        token_html(plane([BAD]), BAD),
    ]
    for part in parts:
        found = tags(part)
        assert "script" not in found.seen
        assert "alert" not in " ".join(name for name, _ in found.attributes)
        assert BAD not in part
    page = tags(document(BAD, "".join(parts)))
    assert page.seen.count("script") == 1


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_every_colour_can_be_read(palette):
    """A sense's colour would swallow its text, or its edge the page (WCAG 2.2, 1.4.3 and 1.4.11)."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert len(palette["fills"]) == len(palette["edges"]) == 10
    for fill in palette["fills"]:
        assert contrast(fill, palette["ink"]) >= 4.5
    for edge in palette["edges"]:
        assert contrast(edge, palette["page"]) >= 3
    for name in ("ink", "muted", "link"):
        assert contrast(palette[name], palette["page"]) >= 4.5


def test_no_colour_is_without_its_number():
    """Who does not tell the colours apart would not know the sense."""
    html = sides_html([("Teacher", reading(token(), token(local=-1)))])
    assert "bank<sub>3</sub>" in html
    assert 'aria-label="bank: sense 3 of 12, id 42, 82% of the choice, 41 of 1,200 occurrences"' in html
    assert 'aria-label="bank: no senses; the token did not occur in the dictionary&#x27;s corpus"' in html
    assert html.count("<sub>") == 1
    assert describe(token(count=1, occurrences=1), named=False).endswith("1 of 1 occurrence")


def test_where_a_student_differs_is_said_in_words():
    """The two sides would differ by colour alone, or the share would be of all tokens."""
    one, two = reading(token(), token("river"), token("a", -1)), reading(token(local=0), token("river"), token("a", -1))
    html = sides_html([("Teacher", one), ("Student", two)])
    assert "Same sense at 1 of 2 tokens (50%)" in html
    assert "≠1" in html
    assert "≠3" in html
    assert "differs: Student chooses sense 1 of 12, id 40" in html
    assert "differs: Teacher chooses sense 3 of 12, id 42" in html
    assert html.count("hs-differs") == 2
    keys = re.findall(r'data-key="([^"]+)"', html)
    assert keys == ["s0-0-7", "s0-1-7", "s0-2-7", "s1-0-7", "s1-1-7", "s1-2-7"]


def test_empty_texts_and_tokens_without_senses_have_a_page():
    """An empty field or an unknown word would break the page."""
    assert "No text to read" in sides_html([("Teacher", reading())])
    tags(sides_html([("Teacher", reading()), ("Student", reading())]))
    html = panel_html(token(local=-1), [], None)
    assert "no senses" in html.lower()
    assert "<li" not in html
    assert "<svg" not in html


def test_every_sense_is_listed():
    """A token's rarer senses would be nowhere, or a hundred of them would bury the page."""
    views = [SenseView(local, 5, 0.02, local / 4) for local in range(45)]
    html = panel_html(token(local=0), views, plane(senses=45))
    assert re.findall(r'hs-chip">(\d+)<', html) == [str(number) for number in range(1, 46)]
    assert re.findall(r'hs-chip">(\d+)<', html.partition("<details>")[0])[-1] == "8"
    assert "37 more, farther" in html
    assert len(re.findall(r'hs-chip">', token_html(plane(senses=45), "bank"))) == 45
    assert "<details>" not in panel_html(token(local=0), views[:8], None)


@pytest.mark.parametrize("senses", [1, 2, 45])
def test_planes_of_one_sense_and_of_many(senses):
    """One sense has no extent to scale by; more senses than colours, or equal ones, would leave the picture."""
    vectors = torch.cat([torch.ones(2, 4), torch.randn(43, 4)])[:senses]
    found = plane_of(SenseDictionary(vectors, torch.tensor([0, senses])), 0)
    html = plane_html(found, "bank", [("teacher", found.senses[0]), ("student", found.senses[-1])])
    tags(html)
    places = [float(value) for value in re.findall(r' (?:cx|cy|x1|x2|y1|y2)="([^"]+)"', html)]
    assert len(places) >= 4 * senses
    assert 0 <= min(places) <= max(places) <= 480
    assert html.count('tabindex="0"') == 1
    assert f"Sense {senses} of {senses}, id {senses - 1}: 1 occurrence" in html


def classes_of(html):
    return {name for key, value in tags(html).attributes if key == "class" for name in value.split()}


def test_the_legend_has_every_mark():
    """A reader meets an edge, a shape or a style of text that no word explains."""
    rich = [
        token(), token(share=0.3), token("[CLS]", special=True), token("zebra", -1), token("a", 11), token("last", local=1),
    ]  # fmt: skip
    other = [token(local=1), *rich[1:]]
    one, two = (Reading(tokens, torch.zeros(6, 4), " and so on", 3) for tokens in (rich, other))
    far = plane(senses=12)
    far.senses[:] = 1.0
    shown = sides_html([("Teacher", one), ("Student", two)]) + panel_html(
        rich[0], [SenseView(2, 41, 0.82, 0.0)], far, [("teacher", np.zeros(2))]
    )
    legend = legend_html(texts=True, two=True, corpus=True)
    tags(legend)
    marks = {
        "hs-token", "hs-unsure", "hs-special", "hs-none", "hs-differs", "hs-unread", "hs-bar", "hs-mark", "hs-base", "hs-dot",
        "hs-here", "hs-axis",
    }  # fmt: skip
    layout = {
        "hs", "hs-side", "hs-sides", "hs-text", "hs-agreement", "hs-panel", "hs-columns", "hs-senses", "hs-chip", "hs-facts",
        "hs-contexts", "hs-tip", "hs-cut",
    }  # fmt: skip
    found = {name for name in classes_of(shown) if not re.fullmatch(r"hs-c\d", name)}
    assert found == marks | layout  # a new class is a mark with words, or layout
    assert marks <= classes_of(legend)
    assert {name for mark in MARKS for name in re.findall(r"[Dd]ashed|[Dd]otted", mark.name)} == {"dashed", "dotted"}
    for rule in ("hs-unsure { border-style: dashed", "hs-none { border-style: dotted"):
        assert rule in style(".dark")


def test_the_docs_explain_the_same_marks():
    """A mark is added or reworded, and docs/explore.md goes on explaining the old ones."""
    page = (Path(__file__).parent.parent / "docs" / "explore.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {mark.name} | {mark.meaning} |" for mark in MARKS)
    assert f"| mark | meaning |\n| --- | --- |\n{rows}\n\n" in page


def test_a_legend_names_only_what_can_be_there():
    """A report of a dictionary alone explains models, texts and dots that it has not."""
    alone = [mark.name for mark in marks_for(texts=False, two=True, corpus=False)]
    assert not {"dotted edge", "≠ and a number", "dot", "cross"} & set(alone)
    assert "circle with a number" in alone
    assert "≠ and a number" not in [mark.name for mark in marks_for(texts=True, two=False, corpus=True)]
    assert marks_for(texts=True, two=True, corpus=True) == list(MARKS)


def test_without_contexts_none_are_promised():
    """The words under a plane send the reader to contexts that are not there."""
    assert HINT in plane_html(plane(), "bank")
    html = plane_html(plane(()), "bank")
    assert HINT_ALONE in html
    assert "context" not in html


def test_every_sense_has_both_of_its_numbers():
    """The number of the page cannot be found in a dictionary or among a model's sense_ids."""
    html = panel_html(token(), [SenseView(2, 41, 0.82, 0.0), SenseView(0, 9, 0.1, 1.5)], plane())
    assert "Sense 3 of 12, id 42, 82% of the choice" in html
    assert re.findall(r'hs-chip">(\d+)</span><div><span class="hs-facts">id (\d+) ', html) == [("3", "42"), ("1", "40")]
    assert 'data-tip="Sense 1 of 3, id 40: a [bank] b"' in html
    assert 'aria-label="Sense 3 of 3, id 42: 5 occurrences. Nearest: a [bank] b"' in html
    alone = token_html(plane(), "bank")
    assert "id 42 · 5 occurrences, 33% · spread 0.25" in alone


def test_a_cut_text_says_so_with_counts():
    """Half of a text is missing, and the reader takes the page for the whole."""
    cut = Reading([token(), token("river")], torch.zeros(2, 4), " and " + "so on " * 200, 1300)
    html = sides_html([("Teacher", cut)])
    assert "The text has 1,302 tokens, and the model takes 2: 1,300 were not read." in html
    unread = re.search(r'hs-unread">(.*?)</span>', html)[1]
    assert unread.startswith(" and so on")
    assert unread.endswith("…")
    assert len(unread) < 500
    assert "not read" not in sides_html([("Teacher", reading(token()))])


def test_the_file_asks_for_nothing():
    """A shared report would tell a server who reads it, or be blank without a network."""
    page = document("title", token_html(plane(), "bank"))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "url(" not in page
    assert "@import" not in page
    for rules in (style(".dark"), style("@media (prefers-color-scheme: dark)")):
        assert rules.count("{") == rules.count("}")
        assert "--hs-fill-9" in rules
