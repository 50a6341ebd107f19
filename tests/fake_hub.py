"""A hub on this machine: the requests that huggingface_hub makes to publish and fetch models.

Repositories live in memory as commits, each a dictionary from names to contents. `refuse` and
`send` make the server answer wrongly.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

import pytest

OWNERS = {"token-of-ada": "ada", "token-of-bob": "bob"}


def git_digest(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def described(name, content):
    """What the hub says of a file; safetensors and pictures are in its large file storage."""
    about = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
    if name.endswith((".safetensors", ".png")):
        about["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
    return about


class Repository:
    """Commits by their hash, and branches and tags that point to them."""

    def __init__(self, private=False):
        self.private, self.gated = private, False
        self.commits, self.refs, self.messages = {}, {}, []
        self.commit({}, "initial commit")

    def commit(self, files, message, branch="main"):
        before = self.commits.get(self.refs.get(branch), {})
        files = {**before, **files}
        content = repr((len(self.commits), message, sorted(files))).encode()
        self.refs[branch] = commit = hashlib.sha1(content).hexdigest()
        self.commits[commit] = files
        self.messages.append(message)
        return commit

    def find(self, revision):
        return revision if revision in self.commits else self.refs.get(revision)


class FakeHub:
    """The server. `asked` holds "METHOD path" of every request.

    refuse  {part of "METHOD path": (status, headers)}, answered in place of the truth
    send    {name of a file: bytes}, sent in place of the file
    listing  bytes sent in place of the list of files; None for the truth
    """

    def __init__(self):
        self.repositories, self.storage = {}, {}
        self.asked, self.refuse, self.send, self.listing = [], {}, {}, None
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                # Clients that leave early are part of what is tested.
                with contextlib.suppress(ConnectionError):
                    hub.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_one

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def repository(self, name, files, **options):
        """Puts a repository there, with one commit of these files; returns the commit."""
        found = self.repositories[name] = Repository(**options)
        return found.commit(files, "files")

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        user = OWNERS.get((request.headers.get("Authorization") or "").removeprefix("Bearer "))
        asked = f"{request.command} {path}"
        self.asked.append(asked)
        for part, (status, headers) in self.refuse.items():
            if part in asked:
                return reply(request, status, headers=headers)
        if path == "/api/whoami-v2":
            return reply(request, 200 if user else 401, {"name": user} if user else {})
        if path == "/api/validate-yaml":
            return reply(request, 200, {"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self.create(request, user, json.loads(body))
        if path.startswith("/storage/"):
            self.storage[path.removeprefix("/storage/")] = body
            return reply(request, 200)
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.storage:
                    href = f"{self.url}/storage/{one['oid']}"
                    one["actions"] = {"upload": {"href": href}}
            return reply(request, 200, {"objects": objects, "transfer": "basic"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path):
            name, verb, revision = found.groups()
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, verb, revision = found[1], "resolve", found[2]
        else:
            return reply(request, 404)
        repository = self.repositories.get(name)
        owns = user == name.split("/")[0]
        if repository is None or (repository.private and not owns):
            return reply(request, 404, headers={"X-Error-Code": "RepoNotFound"})
        if repository.gated and not owns and verb == "resolve":
            return reply(request, 403, headers={"X-Error-Code": "GatedRepo"})
        if request.command == "POST":
            if not owns:
                return reply(request, 403, {"error": "You do not own it"})
            return self.write(request, name, repository, verb, revision, body)
        commit = repository.find(revision or "main")
        if commit is None:
            return reply(request, 404, headers={"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if verb != "resolve":
            if self.listing is not None:
                return reply(request, 200, self.listing)
            siblings = [described(*file) for file in files.items()]
            return reply(request, 200, {"id": name, "sha": commit, "siblings": siblings})
        if found[3] not in files:
            return reply(request, 404, headers={"X-Error-Code": "EntryNotFound"})
        about, content = described(found[3], files[found[3]]), files[found[3]]
        etag = about["lfs"]["sha256"] if "lfs" in about else about["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        content = self.send.get(found[3], content)
        start = re.match(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if start:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return reply(request, 206, content[first:], headers)
        return reply(request, 200, content, headers)

    def create(self, request, user, wanted):
        owner = wanted.get("organization") or user
        name = f"{owner}/{wanted['name']}"
        if owner != user:
            return reply(request, 403, {"error": f"You may not create {name}"})
        status = 409 if name in self.repositories else 200
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.repositories.setdefault(name, Repository(private))
        return reply(request, status, {"url": f"{self.url}/{name}"})

    def write(self, request, name, repository, verb, revision, body):
        if verb == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if "lfs" in described(file["path"], b"") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return reply(request, 200, {"files": modes})
        if verb == "commit":
            files, message = {}, ""
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    message = value["summary"]
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    assert item["key"] == "lfsFile"
                    files[value["path"]] = self.storage[value["oid"]]
            commit = repository.commit(files, message, revision)
            url = f"{self.url}/{name}/commit/{commit}"
            return reply(request, 200, {"commitUrl": url, "commitOid": commit})
        name = revision if verb == "branch" else json.loads(body)["tag"]
        if name in repository.refs:
            return reply(request, 409, {"error": f"{name} exists"})
        repository.refs[name] = repository.find("main" if verb == "branch" else revision)
        return reply(request, 200)


def reply(request, status, content=b"", headers=None):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


@contextlib.contextmanager
def serving(cache):
    """A hub that huggingface_hub and the package speak to, with no token of this machine's user."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra [hub]")
    served = FakeHub()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", served.url)
        patch.setenv("DDPM_JAX_CACHE", str(cache))
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        try:
            yield served
        finally:
            served.close()
