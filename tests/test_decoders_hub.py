"""LLM2Vec checkpoints by their Hub ids, over a loopback server: settings, base and adapters come from there."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import run_python
from test_decoders import make_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """A server of the files under ``tmp_path/repos``, and which were asked for."""
    repos, asked = tmp_path / "repos", []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0].strip("/")
            asked.append(path)
            repo, _, rest = path.partition("/resolve/")
            file = repos / repo / rest.partition("/")[2]
            found = bool(rest) and file.is_file()
            content = file.read_bytes() if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield repos, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_settings_come_from_the_hub_too(hub, base, tmp_path):
    """The released package reads llm2vec_config.json from folders alone: by its id a checkpoint is pooled otherwise."""
    repos, endpoint, asked = hub
    (repos / "org").mkdir(parents=True)
    (repos / "org" / "base").symlink_to(base)
    adapter = make_adapter(base, repos / "org" / "simcse", 1)
    settings = {"pooling_mode": "weighted_mean", "max_length": 40, "doc_max_length": 6, "skip_instruction": False}
    (adapter / "llm2vec_config.json").write_text(json.dumps(settings))
    script = (
        "import json\nfrom hf_sense import load_teacher\n"
        "teacher = load_teacher('org/base', adapters='org/simcse')\n"
        "print(json.dumps(teacher.description()))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = run_python(["-c", script], environment)
    assert done.returncode == 0, done.stderr[-3000:]
    described = json.loads(done.stdout.splitlines()[-1])
    assert described["llm2vec"] == settings
    assert (described["attention"], described["pooling"]) == ("bidirectional", "weighted_mean")
    assert described["adapters"] == [{"name": "org/simcse", "revision": COMMIT}]
    assert described["revision"] == COMMIT
    assert any("llm2vec_config.json" in path for path in asked)
