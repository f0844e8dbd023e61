"""Pushing to a stand-in for the hub: a server on this machine that keeps what it is sent."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from contraprune.cli import main
from contraprune.pipeline import prune


class Hub(ThreadingHTTPServer):
    """Answers what ``HfApi.create_repo`` and ``upload_folder`` ask, and keeps the files of every commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.commits, self.refuses = [], [], False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        self._answer(*self._post(body))

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _post(self, body):
        hub = self.server
        if hub.refuses:
            return 401, {"error": "Invalid username or password."}
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.repositories.append((asked["name"], asked.get("private")))
            return 200, {"url": f"{hub.address}/me/{asked['name']}"}
        if self.path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in lines if e["key"] == "file"}
            hub.commits.append((self.path, lines[0]["value"]["summary"], files))
            url = f"{hub.address}/me/small/commit/0"
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""}
        return 404, {"error": self.path}

    def do_GET(self):
        self._answer(
            *((401, {}) if self.server.refuses else (200, {"sha": "0" * 40, "id": "me/small", "siblings": []}))
        )

    def _answer(self, code, content):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_the_finished_model_is_pushed_once_and_no_checkpoint(tiny_options, hub, tmp_path, capsys):
    options = tiny_options | {
        "push_to_hub": True,
        "hub_model_id": "small",
        "hub_token": "hf_secret",
        "num_train_epochs": 1,
    }
    prune(**options)
    assert set(hub.repositories) == {("small", None)}
    ((path, summary, files),) = hub.commits
    assert path == "/api/models/me/small/commit/main"
    assert "contraprune" in summary
    model = tmp_path / "run" / "model"
    assert files == {file.name: file.read_bytes() for file in model.iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)
    assert b'model="small"' in files["README.md"]
    for file in ("config.yaml", "report.html", "README.md"):
        assert "hf_secret" not in (tmp_path / "run" / file).read_text()
    prune(**options)  # finished: it is pushed again, and nothing is trained
    assert len(hub.commits) == 2
    hub.refuses = True
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert main(["prune", *flags]) == 2
    assert "the run is finished; the same command, or 'hf upload small" in capsys.readouterr().err


def test_a_hub_that_refuses_is_noticed_before_training(tiny_options, hub, tmp_path, capsys):
    hub.refuses = True
    flags = [f"--{name}={value}" for name, value in tiny_options.items()]
    assert main(["prune", *flags, "--push_to_hub", "--hub_model_id=me/small", "--hub_token=hf_secret"]) == 2
    error = capsys.readouterr().err
    assert "--push_to_hub: me/small:" in error
    assert "hf auth login" in error
    assert "hf_secret" not in error
    assert [path.name for path in Path(tmp_path / "run").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push_to_hub"], "--hub_model_id: expected the model's name with --push_to_hub, found none"),
        (["--hub_model_id", "me/x"], "--hub_model_id me/x: only with --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "x", "--hub_strategy", "checkpoint"], "--hub_strategy checkpoint: not"),
        (["--push_to_hub", "--hub_model_id", "x", "--hub_always_push"], "--hub_always_push True: not supported"),
    ],
)
def test_flags_without_effect_are_refused(tiny_options, capsys, flags, message):
    assert main(["prune", *(f"--{name}={value}" for name, value in tiny_options.items()), *flags]) == 2
    assert message in capsys.readouterr().err
