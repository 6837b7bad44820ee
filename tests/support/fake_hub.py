"""A Hugging Face hub on this machine, which speaks what huggingface_hub calls to publish a model.

POST /api/repos/create, /api/models/ID/branch/B, /api/validate-yaml, /api/models/ID/preupload/REV,
/ID.git/info/lfs/objects/batch, /api/models/ID/commit/REV; PUT /lfs/OID
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager

_LARGE = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".png")


class FakeHub:
    """What it was told.

    Attributes:
        token: the one that it takes.
        repositories: id -> what was asked of it.
        objects: sha256 of large files that were sent whole.
        commits: (repository, revision, {path: content, or ("lfs", sha256)}, summary).
        refuses: beginning of a path that is answered with the status 507, or None.
    """

    def __init__(self):
        self.token, self.refuses = "hf_of_the_tests", None
        self.repositories, self.branches, self.objects, self.commits = {}, [], {}, []
        self.url = ""

    def answer(self, method, path, headers, body):
        """(status, value) of a request."""
        if self.refuses and path.startswith(self.refuses):
            return 507, {"error": "no space"}
        if path.startswith("/lfs/"):  # an address that was signed: it takes no token
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.objects[path.removeprefix("/lfs/")] = len(body)
            return 200, {}
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        for pattern, handle in _ROUTES.items():
            found = re.fullmatch(pattern, path)
            if method == "POST" and found:
                return handle(self, body, *found.groups())
        raise AssertionError(f"{method} {path} is no address of the hub's")

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "exists", "url": f"{self.url}/{name}"}
        self.repositories[name] = asked
        return 200, {"url": f"{self.url}/{name}"}

    def branch(self, body, repository, branch):
        self.branches.append((repository, branch))
        return 200, {}

    def validate(self, body):
        assert json.loads(body)["content"].startswith("---\n")
        return 200, {"errors": [], "warnings": []}

    def preupload(self, body, repository, revision):
        files = [
            {"path": each["path"], "shouldIgnore": False, "oid": None,
             "uploadMode": "lfs" if each["path"].endswith(_LARGE) else "regular"}
            for each in json.loads(body)["files"]
        ]  # fmt: skip
        return 200, {"files": files}

    def batch(self, body, repository):
        objects = [
            each | {"actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, body, repository, revision):
        lines = [json.loads(line) for line in body.decode().splitlines()]
        files = {}
        for value in (line["value"] for line in lines if line["key"] == "file"):
            files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            assert self.objects[value["oid"]] == value["size"], "committed before it was sent"
            files[value["path"]] = ("lfs", value["oid"])
        self.commits.append((repository, revision, files, lines[0]["value"]["summary"]))
        oid = f"{len(self.commits):040x}"
        address = f"{self.url}/{repository}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": address}


_ID = "([^/]+/[^/]+)"
_ROUTES = {
    "/api/repos/create": FakeHub.create,
    "/api/validate-yaml": FakeHub.validate,
    f"/api/models/{_ID}/branch/(.+)": FakeHub.branch,
    f"/api/models/{_ID}/preupload/(.+)": FakeHub.preupload,
    f"/api/models/{_ID}/commit/(.+)": FakeHub.commit,
    f"/{_ID}.git/info/lfs/objects/batch": FakeHub.batch,
}


@contextmanager
def fake_hub():
    """A hub that answers at its `url`."""
    hub = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _handle(self):
            body = self._body()
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, value = hub.answer(self.command, self.path.split("?")[0], headers, body)
            said = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def _body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_POST = do_PUT = do_GET = _handle  # noqa: N815

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
