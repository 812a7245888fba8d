"""Stands in for wandb's server, which nobody can start here: takes what the real client sends, and remembers it.

It knows the few requests that uploading a run makes. As the real one does, it keeps one row per line of a file that is
streamed at an offset: a file sent again from its beginning is replaced.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """What one server was sent.

    Attributes:
        rows: of each run's history, by run id.
        exit_codes: of each run that was said to have ended.
        runs: what each run was created with, such as `groupName` and `config`.
        files: names of uploaded files.
        artifacts: inputs of created artifacts.
        alerts: texts.
        num_requests: of any kind.
    """

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: list[str] = []
        self.artifacts: list[dict[str, Any]] = []
        self.alerts: list[str] = []
        self.num_requests = 0

    def environment(self) -> dict[str, str]:
        """Variables with which wandb's client uses this server, logged in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        self.num_requests += 1
        if path == "/graphql":
            request = json.loads(body)
            return {"data": self._query(request["operationName"], request.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        elif path.startswith("/upload/"):
            self.files.append(path.removeprefix("/upload/"))
        return {}

    def _query(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "v", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
        if operation == "UpsertBucket":
            return {"upsertBucket": self._upsert(variables)}
        if operation == "CreateArtifact":
            self.artifacts.append(variables["input"])
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": None}}}
        if operation == "NotifyScriptableRunAlert":
            self.alerts.append(variables["text"])
            return {"notifyScriptableRunAlert": {"success": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {"viewer": viewer, "serverInfo": {"features": []}, "model": None}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = self.runs.setdefault(variables["name"], {})
        known.update({name: value for name, value in variables.items() if value is not None})
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables["name"], "displayName": known.get("displayName"), "project": project}
        return {"bucket": {**bucket, "historyLineCount": None, "sweepName": None}, "inserted": True}

    def _stream(self, run_id: str, body: dict[str, Any]) -> None:
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history:
            rows = self.rows.setdefault(run_id, [])
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if body.get("complete"):
            self.exit_codes[run_id] = body["exitcode"]


@contextmanager
def running_server() -> Iterator[WandbServer]:
    """Runs a server on a free port of this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            content = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET = answer

        def log_message(self, *_: Any) -> None:
            """Keeps the tests' output clean."""

    class Http(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """wandb's client drops its connections when it ends."""

    http = Http(("127.0.0.1", 0), Handler)
    server = WandbServer(http.server_address[1])
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
