"""A server that speaks as much of Google Cloud Storage's JSON API as gcsfs needs, in this process.

It has one bucket, `bucket`. `faults` are as in `tests.s3_server`, with S3's PUT for POST.
"""

import base64
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# Else gcsfs looks for Google's own servers (gRPC), for a minute.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
MISSING = [name for name in ("gcsfs",) if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def gcs_server(faults=()):
    """The address of the server."""
    objects, sessions, numbers, lock = {}, {}, itertools.count(1), threading.Lock()

    def about(key):
        content, generation = objects[key]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        facts = {"kind": "storage#object", "bucket": "bucket", "name": key, "md5Hash": digest}
        return {**facts, "size": str(len(content)), "generation": str(generation)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, values=None, content=None, **headers):
            body = json.dumps(values or {}).encode() if content is None else content
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # gcsfs asks twice and takes one answer
                self.wfile.write(body)

        def fail(self, status, reason):
            error = {"code": status, "message": reason, "errors": [{"message": reason}]}
            self.answer(status, {"error": error})

        def store(self, key, content, query):
            with lock:
                if query.get("ifGenerationMatch") == ["0"] and key in objects:
                    return self.fail(412, "conditionNotMet")
                objects[key] = (content, next(numbers))
            return self.answer(200, about(key))

        def handle_request(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            key, content = path.partition("/b/bucket/o/")[2], b""
            if query.get("uploadType") == ["multipart"]:
                # --==0==, a header, a blank line, JSON; the same with the content; --==0==--
                _, head, rest = body.split(b"--==0==\n", 2)
                key = json.loads(head.partition(b"\n\n")[2])["name"]
                content = rest.partition(b"\n\n")[2].removesuffix(b"\n--==0==--")
            elif query.get("uploadType") == ["resumable"]:
                key = query["name"][0]
            named = f"{path}/{key}"
            for method, part, status, code in faults:
                method = "POST" if method == "PUT" else method
                if self.command == method and part in named:
                    return self.fail(status, code)
            if "/b/bucket" not in path and not path.startswith("/session/"):
                return self.fail(404, "The specified bucket does not exist.")
            if path.startswith("/session/"):
                key, parts, first = sessions[path]
                parts.append(body)
                reach, size = self.headers["Content-Range"].rpartition("-")[2].split("/")
                if int(reach) + 1 < int(size):
                    return self.answer(308, Range=f"bytes=0-{reach}")
                return self.store(key, b"".join(parts), first)
            if query.get("uploadType") == ["multipart"]:
                return self.store(key, content, query)
            if query.get("uploadType") == ["resumable"]:
                session = f"/session/{next(numbers)}"
                sessions[session] = (key, [], query)
                return self.answer(200, Location=f"http://{self.headers['Host']}{session}")
            if not key and path.endswith("/o"):
                prefix = query.get("prefix", [""])[0]
                found = [about(name) for name in sorted(objects) if name.startswith(prefix)]
                if query.get("delimiter") == ["/"]:
                    rest = {item["name"]: item["name"][len(prefix) :] for item in found}
                    folders = {
                        prefix + r.partition("/")[0] + "/" for r in rest.values() if "/" in r
                    }
                    found = [item for item in found if "/" not in rest[item["name"]]]
                    return self.answer(200, {"items": found, "prefixes": sorted(folders)})
                return self.answer(200, {"items": found})
            if not key:
                return self.answer(200, {"name": "bucket", "kind": "storage#bucket"})
            if key not in objects:
                return self.fail(404, f"No such object: {key}")
            if self.command == "DELETE":
                del objects[key]
                return self.answer(204, content=b"")
            if query.get("alt") == ["media"] or path.startswith("/download"):
                return self.answer(200, content=objects[key][0])
            return self.answer(200, about(key))

        do_GET = do_POST = do_PUT = do_DELETE = handle_request

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
