"""The page to explore senses, served on this machine with Gradio.

It joins a text field to the answers of ``hf_sense.answers``; what the page looks like stands in ``hf_sense.page``. Nothing is
shared, counted or fetched from elsewhere.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hf_sense.answers import Answers
from hf_sense.legend import TEXTS
from hf_sense.page import legend_html, script, style

SAMPLE = "She sat on the bank of the river and counted the money that the bank had given her."
# The browser asks no other machine, whatever a library's page may name.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'"
)
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
_RULES = (
    ".gradio-container{max-width:1400px!important;margin:0 auto!important}footer{display:none!important}"
    "body,gradio-app,.gradio-container{background:var(--hs-page)!important}"
    "@media(max-width:560px){.gradio-container .main{padding:.5rem 0!important}}"
)


class _Policy:
    """Adds the policy to every answer of the server."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"content-security-policy", _POLICY.encode()))
            await send(message)

        await self.app(scope, receive, tell if scope["type"] == "http" else send)


def make_page(answers: Answers, heading: str, text: str = SAMPLE) -> Any:
    """The page, as ``gradio.Blocks``.

    Args:
        answers: what it asks.
        heading: HTML that stands above the text field.
        text: what is in the field at first.

    Raises:
        ImportError: without Gradio.
    """
    gr = gradio_module()
    latest: dict[str, tuple[str, str]] = {}  # the text and the key that each open page asked for last

    def read(text: str, key: str, request: Any) -> tuple[str, str]:
        latest[request.session_hash or ""] = text, key
        return answers.text(text, key), answers.panel(text, key)

    def choose(text: str, key: str, request: Any) -> str:
        latest[request.session_hash or ""] = text, key
        return answers.panel(text, key)

    def search(text: str, key: str, request: Any) -> Any:
        if not answers.waits(text, key):
            return gr.skip()
        answers.panel(text, key, search=True)
        return answers.panel(*latest.get(request.session_hash or "", (text, key)))  # time has passed since

    def leave(request: Any) -> None:
        latest.pop(request.session_hash or "", None)

    for function in (read, choose, search, leave):  # Gradio knows by its type what it should pass
        function.__annotations__["request"] = gr.Request
    quiet: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="hf_sense", analytics_enabled=False) as page:
        gr.HTML(heading, apply_default_css=False)
        field = gr.Textbox(text, label="Text", lines=2, max_lines=8, elem_id="hs-field", autofocus=True)
        gr.HTML(
            f'<p class="hs hs-note">{TEXTS}</p>'
            + legend_html(texts=True, two=len(answers.readers) > 1, corpus=answers.planes.has_corpus),
            apply_default_css=False,
        )
        shown = gr.HTML(answers.text(text), elem_id="hs-reading", apply_default_css=False)
        panel = gr.HTML("", elem_id="hs-details", apply_default_css=False)
        key = gr.Textbox("", elem_id="hs-choice", elem_classes="hs-off", container=False, show_label=False)
        # A Textbox's own input event comes with a key press alone, not with what is pasted or deleted.
        field.change(read, [field, key], [shown, panel], **quiet)
        key.change(choose, [field, key], panel, **quiet)
        key.change(search, [field, key], panel, **quiet)
        page.unload(leave)
    return page


def serve(
    answers: Answers, heading: str, text: str = SAMPLE, *, host: str = "127.0.0.1", port: int | None = None
) -> tuple[Any, str]:
    """Starts the server in the background; arguments as for ``make_page``.

    Args:
        answers: what the page asks.
        heading: HTML that stands above the text field.
        text: what is in the field at first.
        host: the address to listen at; this machine alone if not given.
        port: a free one from 7860 on if not given.

    Returns:
        The page, whose ``close()`` stops the server and whose ``block_thread()`` waits, and its address.

    Raises:
        ImportError: without Gradio.
        OSError: if host or port cannot be used.
    """
    gr = gradio_module()
    from starlette.middleware import Middleware

    page = make_page(answers, heading, text)
    _check_address(host, port)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(_Policy)]},
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        head=f"<style>{style('.dark')}{_RULES}</style><script>{script()}</script>",
    )
    return page, address


def _check_address(host: str, port: int | None) -> None:
    """Gradio would try a hundred ports of a host that is not there, and end in its own words."""
    what, option = (f"The host {host}", "--host") if port is None else (f"Port {port} of {host}", "--port")
    if port is not None and not 0 < port < 2**16:
        raise OSError(f"{what} cannot be used: it should be from 1 to 65535. Give another {option}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise OSError(f"{what} cannot be used: {error.strerror}. Give another {option}.") from None


def gradio_module() -> Any:
    """Gradio, with its counting of users switched off; raises ``ImportError`` without it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The page to explore senses needs Gradio: pip install hf-sense[explore]") from error
    return gradio
