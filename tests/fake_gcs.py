"""A bucket on this machine: the part of Cloud Storage's JSON API that gcsfs, tensorstore and Orbax
use, over HTTP on loopback, with failures and slowness on request.

The clients are the real ones, so what they do with an answer (try again, wait, give up) is real,
too. Not here: credentials, other regions, hierarchical buckets, the gRPC API.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class FakeGcs:
    """The server.

    Attributes:
      url: where it listens.
      objects: (bucket, name) -> (content, generation).
      buckets: those that exist.
      requests: "METHOD PATH" of each request that came.
      trouble: called with "METHOD PATH?QUERY" before each answer; an int that it returns is the
        status to answer with instead. It may sleep.
    """

    def __init__(self):
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.buckets = {"bucket"}
        self.requests: list[str] = []
        self.trouble: Callable[[str], int | None] = lambda request: None
        self.lock = threading.Lock()
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.generation = 0
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"gcs": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for _, name in self.objects if name.startswith(prefix))

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self.generation += 1
        self.objects[bucket, name] = (content, self.generation)

    def resource(self, bucket: str, name: str) -> dict:
        content, generation = self.objects[bucket, name]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        now = "2026-01-01T00:00:00.000Z"
        return {"kind": "storage#object", "bucket": bucket, "name": name, "md5Hash": md5,
                "size": str(len(content)), "generation": str(generation), "metageneration": "1",
                "updated": now, "timeCreated": now}  # fmt: skip


def fail(status, pattern, times=10**9, seconds=0.0):
    """For ``FakeGcs.trouble``: answer the first requests that match with a status."""
    left = [times]

    def trouble(request):
        if re.search(pattern, request) and left[0] > 0:
            left[0] -= 1
            time.sleep(seconds)
            return status
        return None

    trouble.left = left
    return trouble


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients cancel what they need not
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gcs: FakeGcs

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes | dict = b"", **headers) -> None:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, message: str = "injected") -> None:
        self.answer(status, {"error": {"code": status, "message": message}})

    def handle_any(self) -> None:
        body = self.read_body()
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        request = f"{self.command} {unquote(self.path)}"
        self.gcs.requests.append(request)
        if status := self.gcs.trouble(request):
            self.error(status)
            return
        with self.gcs.lock:
            self.route(parts.path, query, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self, path: str, query: dict, body: bytes) -> None:
        gcs = self.gcs
        if match := UPLOAD.fullmatch(path):
            self.upload(match[1], query, body)
        elif match := MOVE.fullmatch(path):
            bucket, source, target = match[1], unquote(match[2]), unquote(match[3])
            if (bucket, source) not in gcs.objects:
                return self.error(404, "No such object")
            gcs.put(bucket, target, gcs.objects.pop((bucket, source))[0])
            self.answer(200, gcs.resource(bucket, target))
        elif match := OBJECT.fullmatch(path):
            self.object(match[1], unquote(match[2]), query)
        elif match := LIST.fullmatch(path):
            self.list(match[1], query)
        elif match := BUCKET.fullmatch(path):
            if match[1] not in gcs.buckets:
                return self.error(404, "The specified bucket does not exist.")
            self.answer(200, {"kind": "storage#bucket", "name": match[1], "id": match[1]})
        else:
            self.error(501, f"not in the fake: {self.command} {path}")

    def object(self, bucket: str, name: str, query: dict) -> None:
        gcs, key = self.gcs, (bucket, name)
        if key not in gcs.objects:
            return self.error(404, "No such object")
        content, generation = gcs.objects[key]
        if self.command == "DELETE":
            del gcs.objects[key]
            return self.answer(204)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self.error(412, "generation")
        if query.get("alt") != "media":
            return self.answer(200, gcs.resource(bucket, name))
        whole, status, more = len(content), 200, {}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1] or 0), min(int(match[2] or whole - 1), whole - 1)
            if not match[1]:  # the last bytes
                first, last = max(whole - int(match[2]), 0), whole - 1
            if first >= whole:
                return self.error(416, "range")
            content, status = content[first : last + 1], 206
            more = {"Content_Range": f"bytes {first}-{last}/{whole}"}
        self.answer(status, content, x_goog_generation=generation,
                    x_goog_stored_content_length=whole, **more)  # fmt: skip

    def list(self, bucket: str, query: dict) -> None:
        if bucket not in self.gcs.buckets:
            return self.error(404, "The specified bucket does not exist.")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(n for b, n in self.gcs.objects if b == bucket):
            if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            if name.startswith(prefix):
                head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                if found and delimiter:
                    prefixes.add(prefix + head + delimiter)
                else:
                    items.append(self.gcs.resource(bucket, name))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def upload(self, bucket: str, query: dict, body: bytes) -> None:
        gcs, kind = self.gcs, query["uploadType"]
        if bucket not in gcs.buckets:
            return self.error(404, "The specified bucket does not exist.")
        if "upload_id" in query:
            return self.upload_part(query["upload_id"], body)
        name, content = query.get("name"), body
        if kind == "resumable":
            name = name or json.loads(body)["name"]
            upload = f"upload-{len(gcs.uploads)}"
            gcs.uploads[upload] = (bucket, name, bytearray())
            where = f"{gcs.url}{urlsplit(self.path).path}?uploadType=resumable&upload_id={upload}"
            return self.answer(200, Location=where)
        if kind == "multipart":
            described, content = _multipart(self.headers["Content-Type"], body)
            name = json.loads(described)["name"]
        wanted = query.get("ifGenerationMatch")
        there = gcs.objects.get((bucket, name), (b"", 0))[1]
        if wanted is not None and int(wanted) != there:
            return self.error(412, "generation")
        gcs.put(bucket, name, content)
        self.answer(200, gcs.resource(bucket, name))

    def upload_part(self, upload: str, body: bytes) -> None:
        bucket, name, parts = self.gcs.uploads[upload]
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        parts[int(match[1] or 0) :] = body
        if match[2] == "*":
            return self.answer(308, Range=f"bytes=0-{len(parts) - 1}")
        self.gcs.put(bucket, name, bytes(parts))
        self.answer(200, self.gcs.resource(bucket, name))


def _multipart(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    parts = body.split(b"--" + boundary)[1:3]
    contents = []
    for part in parts:
        head, _, content = part.lstrip(b"\r\n").replace(b"\r\n", b"\n", 3).partition(b"\n\n")
        del head
        contents.append(content)
    return contents[0], contents[1].removesuffix(b"\n").removesuffix(b"\r")
