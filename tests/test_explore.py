"""The page in a browser: typing, choosing with mouse and keys, narrow and wide, light and dark, and nothing from elsewhere."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import socket
import statistics
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from hf_sense import SenseModel, SenseModelForSequenceClassification, build_dictionary, load_teacher
from hf_sense.answers import Answers
from hf_sense.cli import main
from hf_sense.corpus import encode_corpus
from hf_sense.page import heading
from hf_sense.plane import Planes
from hf_sense.reading import Reader
from hf_sense.report import write_report

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

gradio = pytest.importorskip("gradio", reason="pip install hf-sense[explore]")
from hf_sense.explore import serve  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::gradio.*")  # its own dealings with pandas
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TEXT = "the bank holds the money and a river sees its water"
# Puts a word at the text's end and waits until the page shows it: milliseconds, one frame included.
TYPE = """(word) => new Promise((done) => {
  const field = document.querySelector("#hs-field textarea"), shown = document.querySelector("#hs-reading");
  const seen = new MutationObserver(() => {
    if (!shown.textContent.includes(word)) return;
    seen.disconnect();
    requestAnimationFrame(() => done(performance.now() - begin));
  });
  seen.observe(shown, { childList: true, subtree: true, characterData: true });
  const begin = performance.now();
  field.setRangeText(word, field.value.lastIndexOf(" ") + 1, field.value.length, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
})"""


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def readers(teacher, dictionary, tokenizer):
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    return [Reader.of_teacher(teacher, dictionary), Reader.of_student(student, tokenizer, "student", dictionary)]


@pytest.fixture(scope="module")
def corpus(teacher, texts):
    return encode_corpus(texts, teacher.tokenizer, 32, disable_tqdm=True)


@pytest.fixture(scope="module")
def address(readers, corpus):
    """The page of a teacher and a student, served."""
    planes = Planes(readers[0].dictionary, readers[0], corpus)
    page, address = serve(Answers(readers, planes), heading(readers), TEXT)
    yield address
    page.close(verbose=False)


@pytest.fixture
def look(browser):
    """Opens an address; at the end nothing may have been asked of another machine, and no script may have failed."""
    opened, asked, errors, forbidden = [], [], [], []

    def open_page(address, width=1400, scheme="light", theme=None):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(15_000)
        opened.append(context)
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: "csp" in request.failure.lower() and forbidden.append(request.url))
        page.on("websocket", lambda web: asked.append(web.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + (f"?__theme={theme}" if theme else ""))
        page.wait_for_selector("button.hs-token")
        if address.startswith("http"):
            page.wait_for_load_state("load")
            page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")  # the framework has come to life
        return page

    yield open_page
    for context in opened:
        context.close()
    assert asked
    # A request that the page's policy forbade was never sent; Gradio 6.0 names a script on another machine.
    here = r"http://127\.0\.0\.1:|file://|data:|blob:http://127"
    assert [url for url in asked if not re.match(here, url) and url not in forbidden] == []
    assert errors == []


def write(page, text):
    page.locator("#hs-field textarea").fill(text)


def widest(page):
    return page.evaluate("document.documentElement.scrollWidth")


def test_typing_shows_the_text_and_nothing_is_run(look, address):
    """Pasted or deleted text would leave the old tokens; a template or markup in a text would be carried out."""
    page = look(address)
    page.locator("#hs-field textarea").press("End")
    page.keyboard.type(" door")
    page.wait_for_selector('.hs-token:text("door")')
    for _ in "door":
        page.keyboard.press("Backspace")
    page.wait_for_selector('.hs-token:text("door")', state="detached")
    write(page, "${1+1} {{value}} <img src=x onerror=alert(1)> bank")
    page.wait_for_function("document.querySelector('.hs-text').textContent.includes('img')")
    shown = page.evaluate(
        "[...document.querySelector('.hs-text').childNodes].map(n => n.nodeType === 3 ? n.data : n.firstChild.data).join('')"
    )
    assert "${1+1} {{value}} <img src=x onerror=alert(1)> bank" in shown
    assert page.locator("#hs-reading img").count() == 0
    write(page, "")
    page.wait_for_selector("text=No text to read")


def test_a_chosen_token_shows_its_senses_and_then_its_contexts(look, address):
    """A click would do nothing, wait for the corpus, or show another token than the one clicked."""
    page = look(address)
    bank = page.locator('.hs-token[data-key^="s0-2-"]')
    assert bank.inner_text().startswith("bank")
    bank.click()
    page.wait_for_selector(".hs-panel h3:has-text('bank')")
    assert bank.get_attribute("aria-pressed") == "true"
    page.wait_for_selector(".hs-panel .hs-contexts li:has-text('[bank]')")
    page.locator(".hs-panel .hs-dot").first.hover(force=True)
    assert re.match(r"Sense \d+ of \d+, id \d+: .*\[bank\]", page.locator(".hs-tip").inner_text())
    assert "chooses" in page.locator(".hs-panel > p").first.inner_text()
    assert page.locator(".hs-panel .hs-here").count() == 2
    page.locator('.hs-token[data-key^="s1-8-"]').click()  # the student's river
    page.wait_for_selector(".hs-panel h3:has-text('river')")
    assert "This is the student's choice" in page.locator(".hs-panel > p").first.inner_text()
    assert page.locator('.hs-token[aria-pressed="true"]').count() == 1
    write(page, TEXT + " and a door")
    page.wait_for_selector('.hs-token:text("door")')
    assert page.locator('.hs-token[aria-pressed="true"]').inner_text().startswith("river")
    write(page, "a door")
    page.wait_for_selector(".hs-panel", state="detached")


def test_a_text_longer_than_the_model_takes(look, address):
    """The page would show the beginning of a pasted document as if it were all of it."""
    page = look(address, 400)
    write(page, "the bank holds the money and " * 30)
    page.wait_for_selector(".hs-cut")
    said = page.locator(".hs-cut")
    assert said.count() == 2
    assert said.first.inner_text() == "The text has 182 tokens, and the model takes 64: 118 were not read."
    assert (
        page.locator(".hs-side")
        .first.locator(".hs-unread")
        .inner_text()
        .strip()
        .startswith("holds the money and the bank")
    )
    assert page.locator(".hs-side").first.locator("button.hs-token").count() == 64
    assert widest(page) <= 400


def test_teacher_and_student_are_compared(look, address, readers):
    """The share would be another than that of the two readings, or differences would go unmarked."""
    page = look(address)
    one, two = (reader.read(TEXT).tokens for reader in readers)
    differ = sum(a.sense_id != b.sense_id for a, b in zip(one, two))
    labelled = sum(a.sense_id >= 0 for a in one)
    assert 0 < differ < labelled
    assert f"Same sense at {labelled - differ} of {labelled} tokens" in page.locator(".hs-agreement").inner_text()
    assert page.locator("#hs-reading .hs-differs").count() == 2 * differ
    assert page.locator('.hs-token[aria-label*="differs: Student chooses"]').count() == differ


def test_the_keyboard_is_enough(look, address):
    """Who uses no mouse could not choose a token or read a context."""
    page = look(address)
    focused = "document.activeElement.textContent"
    page.locator("#hs-field textarea").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the legend
    page.wait_for_selector(".hs-legend dt .hs-none")
    page.keyboard.press("Tab")
    assert page.evaluate(focused).startswith("[CLS]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith("bank")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(".hs-panel .hs-contexts li:has-text('[bank]')")
    page.keyboard.press("End")
    assert page.evaluate(focused).startswith("[SEP]")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('hs-mark')"):
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "2"
    assert page.locator(".hs-tip").inner_text().startswith("Sense 2 of ")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_wide_light_and_dark(look, address, width, scheme, tmp_path):
    """A phone would scroll sideways, or a dark page would show dark text."""
    page = look(address, width, scheme)
    write(page, TEXT + " " + "x" * 60)
    page.locator('.hs-token[data-key^="s0-2-"]').click()
    page.wait_for_selector(".hs-panel .hs-contexts li")
    assert widest(page) <= width
    assert len(page.screenshot(path=tmp_path / "page.png", full_page=True)) > 10_000
    ink, fill, ground = page.evaluate(
        "(() => { const t = getComputedStyle(document.querySelector('button.hs-token:not(.hs-none)')),"
        " b = getComputedStyle(document.querySelector('.gradio-container'));"
        " return [t.color, t.backgroundColor, b.backgroundColor] })()"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, fill, ground)]
    assert (bright[0] > 200) == (bright[1] < 120) == (bright[2] < 60) == (scheme == "dark")
    if width == 400:
        other = look(address, width, scheme, "light" if scheme == "dark" else "dark")
        text = other.evaluate("getComputedStyle(document.querySelector('button.hs-token')).color")
        assert (sum(map(int, re.findall(r"\d+", text)[:3])) > 600) == (scheme == "light")


def test_the_report_is_the_same_page_without_a_server(look, readers, corpus, teacher, dictionary, tmp_path):
    """A shared file would need the server, load something, or show other senses."""
    path = write_report(
        dictionary,
        tmp_path,
        corpus=corpus,
        teacher=teacher,
        student=readers[1],
        tokens=["bank"],
        texts=[TEXT, "a river"],
    )
    page = look(path.with_suffix(".html").as_uri(), 400, "dark")
    assert widest(page) <= 400
    assert page.locator(".hs-panel[data-of]:visible").count() == 0
    page.locator('.hs-token[data-key^="t0s0-2-"]').focus()
    page.keyboard.press("Enter")
    panel = page.locator(".hs-panel[data-of]:visible")
    assert panel.count() == 1
    sense = readers[0].read(TEXT).tokens[2].local + 1
    assert f"Sense {sense} of " in panel.inner_text()
    panel.locator(".hs-dot").first.hover(force=True)
    assert "[bank]" in panel.locator(".hs-tip").inner_text()
    page.locator('.hs-token[data-key^="t1s1-2-"]').click()
    assert page.locator(".hs-panel[data-of]:visible h3").inner_text() == "“river”"
    assert (
        "--token" in page.locator(".hs-panel[data-of]:visible .hs-note").inner_text()
    )  # the report draws the bank alone
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 28)"


@pytest.fixture
def folders(teacher, dictionary, tokenizer, texts, tmp_path, tiny_teacher_folder):
    """A dictionary, a student and texts on disk."""
    dictionary.metadata.setdefault("teacher", {})["name"] = str(tiny_teacher_folder)
    dictionary.save_pretrained(tmp_path / "dictionary")
    tokenizer.save_pretrained(tmp_path / "dictionary")
    SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    rows = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_the_command_serves_what_it_was_given(folders, monkeypatch, capsys):
    """The command would read another folder than the one named, or listen to the whole network."""
    seen = {}

    def visit(page):
        seen["address"] = page.local_url
        with urllib.request.urlopen(page.local_url) as answer:
            seen["policy"], seen["html"] = answer.headers["Content-Security-Policy"], answer.read().decode()

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    student = str(folders / "student")
    teacher = json.loads((folders / "dictionary" / "sense_dictionary.json").read_text(encoding="utf-8"))["teacher"][
        "name"
    ]
    for arguments, sides in (
        ([str(folders / "dictionary"), "--corpus", str(folders / "texts.jsonl"), "--student", student], 2),
        ([student], 1),
        ([student, "--teacher", teacher], 2),
    ):
        assert main(["explore", *arguments, "--text", TEXT]) == 0
        assert "Ctrl-C" in capsys.readouterr().out
        assert seen["address"].startswith("http://127.0.0.1:")
        assert "default-src 'self'" in seen["policy"]
        assert ("Same sense at" in seen["html"]) == (sides == 2)
        assert "s0-2-" in seen["html"]


def test_bad_arguments_are_one_line(folders, teacher, dictionary, capsys):
    """A slip would end in a traceback, or after the long work."""
    folded = str(folders / "folded")
    config = BertConfig(**{**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1})
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, backbone=BertModel(config))
    model.fold().save_pretrained(folded)
    student, dictionary = str(folders / "student"), str(folders / "dictionary")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["explore", student, "--student", student], "is a sense model itself"),
            (["explore", dictionary, "--student", dictionary], "should be the folder of a sense model"),
            (["explore", str(folders)], "not a sense dictionary"),
            (["explore", dictionary, "--teacher", "/nowhere/x"], "There is no folder"),
            (["explore", dictionary, "--port", port], f"Port {port} of 127.0.0.1 cannot be used"),
            (["report", dictionary, "--output", str(folders / "texts.jsonl")], "should be a folder"),
            (["report", dictionary, "--output", str(folders / "r"), "--token", "qqqqqq"], "not a token"),
            (["explore", folded], "is a folded model"),
            (["explore", folded, "--teacher", "/nowhere/x"], "is a folded model"),
            (["explore", dictionary, "--student", folded], "Give the model that it was folded from"),
            (["report", folded, "--output", str(folders / "r")], "is a folded model"),
            (["report", dictionary, "--student", folded, "--output", str(folders / "r")], "is a folded model"),
            (["inspect", folded, "bank"], "is a folded model"),
        ):
            assert main(arguments) == 2, arguments
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert said.startswith("hf-sense: ")
            assert message in said, said


def test_the_report_command_needs_no_teacher(folders, capsys):
    """A report of a dictionary alone would ask for its teacher; texts of the corpus would not be coloured with one."""
    dictionary, output = str(folders / "dictionary"), folders / "report"
    assert main(["report", dictionary, "--output", str(output)]) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    assert (
        "hs-token "
        not in (output / "report.html").read_text(encoding="utf-8").partition("</style>")[2].partition("<script>")[0]
    )
    assert (
        main(
            ["report", dictionary, "--output", str(output), "--corpus", str(folders / "texts.jsonl"), "--token", "bank"]
        )
        == 0
    )
    page = (output / "report.html").read_text(encoding="utf-8")
    assert 'data-key="t0s0-1-' in page
    assert "[bank]" in page


def test_without_gradio(folders, capsys, monkeypatch):
    """Without the extra, the command would end in a traceback after the teacher was loaded."""
    real = builtins.__import__

    def no_gradio(name, *args, **kwargs):
        if name == "gradio":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_gradio)
    assert main(["explore", str(folders / "dictionary"), "--teacher", "/nowhere/x"]) == 2
    assert "pip install hf-sense[explore]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real():
    """all-MiniLM-L6-v2 with senses from a hundred stories, and its first two layers as a student."""
    try:
        teacher, stories = load_teacher(str(teacher_folder(fetch=False))), reuters_r8("train", fetch=False)[0][:100]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    dictionary = build_dictionary(teacher, stories, max_length=48, disable_tqdm=True)
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=2)
    return Reader.of_teacher(teacher, dictionary), Reader.of_student(student, teacher.tokenizer, "student", dictionary)


@pytest.mark.real
@pytest.mark.parametrize("number", [1, 2])
def test_a_real_teacher_is_fast_enough_to_type_in(look, real, number):
    """The page would lag behind the fingers."""
    text = (
        "the company said its shares rose after the bank of the north raised interest rates on oil and trade in wheat"
    )
    reading = []
    for _ in range(12):
        begin = time.perf_counter()
        for reader in real[:number]:
            reader.read(text)
        reading.append(1e3 * (time.perf_counter() - begin))
    page, address = serve(Answers(real[:number], Planes(real[0].dictionary, real[0])), heading(real[:number]))
    try:
        opened = look(address)
        write(opened, text)
        opened.wait_for_selector('.hs-token:text("wheat") >> nth=0')
        words = ["coffee", "sugar", "gold", "ship", "crude", "grain", "dollar", "yen", "loss", "profit", "bonds", "tax"]
        times = [opened.evaluate(TYPE, word) for word in words]
    finally:
        page.close(verbose=False)
    print(
        f"\n{number} models: reading {statistics.median(reading):.0f} ms; keystroke to page: median "
        f"{statistics.median(times):.0f} ms, most {max(times):.0f} ms"
    )
    assert statistics.median(times) < 200
