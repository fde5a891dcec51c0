"""Object stores and a hub on loopback, in this process: what gcsfs, tensorstore, s3fs and huggingface_hub ask of them.

    with Buckets("vdit-test") as buckets:        # speaks the JSON API of Google's storage, and S3
        monkeypatch.setenv(...) for buckets.environment().items()
        buckets.deny = lambda method, key: True  # answers 403
        buckets.cut = 2                          # the next two transfers of bytes end in the middle
"""

from __future__ import annotations

import base64
import email
import hashlib
import http.server
import json
import os
import re
import threading
import uuid
from collections.abc import Callable
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

NOW = "2026-11-28T12:00:00.000Z"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no fault of the server's."""


class Loopback:
    """An HTTP server in a thread of this process; `handler` is its class of handlers."""

    handler: type[http.server.BaseHTTPRequestHandler]

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), self.handler)
        self._server.store = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in (204, 304) and "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and data:
            self.wfile.write(data)

    def send_json(self, value: object, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def drop(self) -> None:
        """Ends the connection, as a broken network does."""
        self.close_connection = True
        self.connection.close()

    def send_range(self, data: bytes, **headers: str) -> None:
        """A body, or the part of it that is asked for; cut short where the store says so."""
        status, found = 200, re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found and not (found[1] or found[2]):
            found = None
        if found:
            first = int(found[1]) if found[1] else max(len(data) - int(found[2]), 0)
            last = min(int(found[2]), len(data) - 1) if found[1] and found[2] else len(data) - 1
            if first >= len(data):
                self.send(416, Content_Range=f"bytes */{len(data)}")
                return
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if self.command == "GET" and len(data) > 64 and self.server.store.take_cut():
            self.send(status, data[: len(data) // 2], Content_Length=str(len(data)), **headers)
            self.drop()
            return
        self.send(status, data, **headers)


class Buckets(Loopback):
    """Buckets in memory.

    objects: (bucket, key) -> bytes. deny: (method, key) -> whether the answer is 403. cut: so many transfers of
    bytes, up or down, end in the middle. asked: (method, key) of every request about an object.
    """

    def __init__(self, *names: str):
        self.names = set(names)
        self.objects: dict[tuple[str, str], bytes] = {}
        self.generations: dict[tuple[str, str], int] = {}
        self.uploads: dict[str, dict] = {}
        self.deny: Callable[[str, str], bool] = lambda method, key: False
        self.cut = 0
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._count = 0
        self.handler = _BucketHandler

    def environment(self) -> dict[str, str]:
        """Points the libraries at this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def names_of(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys in a bucket, sorted."""
        with self.lock:
            return sorted(key for where, key in self.objects if where == bucket and key.startswith(prefix))

    def put(self, bucket: str, key: str, data: bytes) -> None:
        with self.lock:
            self._count += 1
            self.objects[bucket, key] = data
            self.generations[bucket, key] = self._count

    def take_cut(self) -> bool:
        with self.lock:
            taken = self.cut > 0
            self.cut -= taken
            return taken


    def reset(self) -> None:
        """Empties the buckets, and gives all rights back."""
        with self.lock:
            self.objects.clear()
            self.generations.clear()
            self.asked.clear()
            self.cut, self.deny = 0, lambda method, key: False


def _forget(buckets) -> None:
    """Drops the connections of vdit and of epath: the address has changed."""
    from etils.epath import backend

    buckets._store.cache_clear()
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()


def serve_buckets():
    """A fixture: one server for the tests of a file, since the libraries keep their connections."""
    from vdit import buckets

    with Buckets("vdit-test") as found:
        before = {key: os.environ.get(key) for key in found.environment()}
        os.environ.update(found.environment())
        _forget(buckets)
        yield found
        _forget(buckets)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


class _BucketHandler(_Handler):
    def do(self) -> None:
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        self.store: Buckets = self.server.store
        data = self.body()
        self.google = re.match(r"(/upload|/download|/batch)?/storage/v1(/|$)", split.path) is not None
        try:
            (self._google if self.google else self._s3)(split.path, data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def refuse(self, status: int, code: str) -> None:
        if self.google:
            self.send_json({"error": {"code": status, "message": code, "errors": [{"reason": code}]}}, status)
        else:
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
            self.send(status, text.encode(), Content_Type="application/xml")

    def refused(self, bucket: str, key: str, method: str | None = None) -> bool:
        """Answers where the bucket is not there or the caller has no right to it."""
        self.store.asked.append((method or self.command, key))
        if bucket not in self.store.names:
            self.refuse(404, "NoSuchBucket" if not self.google else "notFound")
        elif self.store.deny(method or self.command, key):
            self.refuse(403, "AccessDenied" if not self.google else "forbidden")
        else:
            return False
        return True

    # Google's JSON API

    def _google(self, path: str, data: bytes) -> None:
        if path.startswith("/batch"):
            self._google_batch(data)
            return
        kind, _, rest = path.partition("/storage/v1")
        parts = rest.strip("/").split("/", 3)  # b, BUCKET, o, KEY
        bucket = unquote(parts[1]) if len(parts) > 1 else ""
        key = unquote(parts[3]) if len(parts) > 3 else self.query.get("name", "")
        if kind == "/upload":
            self._google_upload(bucket, key, data)
            return
        if self.refused(bucket, key or self.query.get("prefix", "")):
            return
        if len(parts) == 2:
            self.send_json({"kind": "storage#bucket", "name": bucket, "id": bucket})
        elif len(parts) == 3:
            self._google_list(bucket)
        elif "/rewriteTo/" in parts[3] or "/copyTo/" in parts[3]:
            source, _, target = re.split(r"/(rewriteTo|copyTo)/b/", parts[3])
            into, _, name = target.partition("/o/")
            if (bucket, unquote(source)) not in self.store.objects:
                self.refuse(404, "notFound")
                return
            self.store.put(unquote(into), unquote(name), self.store.objects[bucket, unquote(source)])
            self.send_json({"done": True, "resource": self._resource(unquote(into), unquote(name))})
        elif "/moveTo/o/" in parts[3]:
            source, _, name = map(unquote, parts[3].partition("/moveTo/o/"))
            self.store.put(bucket, name, self.store.objects[bucket, source])
            self._delete(bucket, source)
            self.send_json(self._resource(bucket, name))
        elif self.command == "DELETE":
            if not self._delete(bucket, key):
                self.refuse(404, "notFound")
            else:
                self.send(204)
        else:
            self._google_object(bucket, key, kind)

    def _google_object(self, bucket: str, key: str, kind: str) -> None:
        with self.store.lock:
            data, generation = self.store.objects.get((bucket, key)), self.store.generations.get((bucket, key))
        if data is None:
            self.refuse(404, "notFound")
        elif self.query.get("ifGenerationNotMatch") == str(generation):
            self.send(304)
        elif self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            self.refuse(412, "conditionNotMet")
        elif self.query.get("alt") == "media" or kind == "/download":
            tags = {"x_goog_generation": str(generation), "x_goog_metageneration": "1"}
            self.send_range(data, Content_Type="application/octet-stream", X_Goog_Hash=f"md5={_md5(data)}", **tags)
        else:
            self.send_json(self._resource(bucket, key))

    def _google_upload(self, bucket: str, key: str, data: bytes) -> None:
        kind = self.query.get("uploadType")
        upload = self.query.get("upload_id")
        if upload is not None:
            entry = self.store.uploads[upload]
            if self.refused(entry["bucket"], entry["key"], "PUT"):
                return
            if len(data) > 64 and self.store.take_cut():
                self.drop()
                return
            entry["data"] += data
            total = self.headers.get("Content-Range", "bytes */0").rpartition("/")[2]
            if total == "*" or int(total) > len(entry["data"]):
                self.send(308, Range=f"bytes=0-{len(entry['data']) - 1}")
                return
            self.store.put(entry["bucket"], entry["key"], entry["data"])
            self.send_json(self._resource(entry["bucket"], entry["key"]))
            return
        if kind == "multipart":
            head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            told, body = email.message_from_bytes(head + data).get_payload()
            key = json.loads(told.get_payload(decode=True))["name"]
            # not email's decoding, which changes line ends of bytes
            separator = b"--" + self.headers["Content-Type"].partition("boundary=")[2].strip("\"'; ").encode()
            part = data.split(separator)[2]
            end = b"\r\n" if b"\r\n\r\n" in part.partition(b"\n\n")[0] else b"\n"
            data = part.partition(end + end)[2].removesuffix(end)
            del body
        elif kind == "resumable":
            key = key or json.loads(data)["name"]
        if self.refused(bucket, key, "PUT"):
            return
        with self.store.lock:
            wanted = self.query.get("ifGenerationMatch")
            if wanted is not None and int(wanted) != self.store.generations.get((bucket, key), 0):
                self.refuse(412, "conditionNotMet")
                return
            if kind != "resumable":
                if len(data) > 64 and self.store.take_cut():
                    self.drop()
                    return
                self.store.put(bucket, key, data)
                self.send_json(self._resource(bucket, key))
                return
        name = uuid.uuid4().hex
        self.store.uploads[name] = {"bucket": bucket, "key": key, "data": b""}
        where = f"{self.store.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={name}"
        self.send_json({}, Location=where)

    def _google_list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        found, prefixes = self._listed(bucket, prefix, delimiter)
        items = [self._resource(bucket, key) for key in found if key >= self.query.get("startOffset", "")]
        self.send_json({"kind": "storage#objects", "items": items, "prefixes": prefixes})

    def _google_batch(self, data: bytes) -> None:
        head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        lines = []
        for part in email.message_from_bytes(head + data).get_payload():
            request = part.get_payload()
            found = re.search(r"DELETE \S*/b/([^/]+)/o/(\S+) ", request)
            bucket, key = unquote(found[1]), unquote(found[2].partition("?")[0])
            self.store.asked.append(("DELETE", key))
            status = "403 Forbidden" if self.store.deny("DELETE", key) else (
                "204 No Content" if self._delete(bucket, key) else "404 Not Found")  # fmt: skip
            lines.append(f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{part['Content-ID']}>"
                         f"\r\n\r\nHTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")  # fmt: skip
        text = "\r\n".join(lines) + "\r\n--batch--\r\n"
        self.send(200, text.encode(), Content_Type="multipart/mixed; boundary=batch")

    def _resource(self, bucket: str, key: str) -> dict:
        data = self.store.objects[bucket, key]
        return {
            "kind": "storage#object", "name": key, "bucket": bucket, "size": str(len(data)), "updated": NOW,
            "timeCreated": NOW, "generation": str(self.store.generations[bucket, key]), "metageneration": "1",
            "md5Hash": _md5(data), "etag": _md5(data), "contentType": "application/octet-stream",
        }  # fmt: skip

    # S3

    def _s3(self, path: str, data: bytes) -> None:
        bucket, _, key = unquote(path).strip("/").partition("/")
        if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING") or "aws-chunked" in self.headers.get(
            "Content-Encoding", ""
        ):
            data = _without_chunks(data)
        if self.refused(bucket, key or self.query.get("prefix", "")):
            return
        if not key:
            self._s3_bucket(bucket, data)
        elif self.command in ("GET", "HEAD"):
            found = self.store.objects.get((bucket, key))
            if found is None:
                self.refuse(404, "NoSuchKey")
            elif self.command == "HEAD":
                self.send(200, Content_Length=str(len(found)), ETag=_etag(found), Last_Modified=_DATE)
            else:
                self.send_range(found, ETag=_etag(found), Last_Modified=_DATE)
        elif self.command == "DELETE":
            self._delete(bucket, key)
            self.send(204)
        elif self.command == "POST":
            self._s3_upload(bucket, key)
        else:
            self._s3_put(bucket, key, data)

    def _s3_put(self, bucket: str, key: str, data: bytes) -> None:
        if self.headers.get("x-amz-copy-source"):
            source, _, name = unquote(self.headers["x-amz-copy-source"]).strip("/").partition("/")
            if (source, name) not in self.store.objects:
                self.refuse(404, "NoSuchKey")
                return
            data = self.store.objects[source, name]
            self.store.put(bucket, key, data)
            text = f"<CopyObjectResult><ETag>{_etag(data)}</ETag><LastModified>{NOW}</LastModified></CopyObjectResult>"
            self.send(200, text.encode(), Content_Type="application/xml")
            return
        if len(data) > 64 and self.store.take_cut():
            self.drop()
            return
        if self.headers.get("If-None-Match") == "*" and (bucket, key) in self.store.objects:
            self.refuse(412, "PreconditionFailed")
            return
        if "partNumber" in self.query:
            self.store.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = data
        else:
            self.store.put(bucket, key, data)
        self.send(200, ETag=_etag(data))

    def _s3_upload(self, bucket: str, key: str) -> None:
        if "uploads" in self.query:
            name = uuid.uuid4().hex
            self.store.uploads[name] = {}
            text = f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>" \
                   f"<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"  # fmt: skip
        else:
            if self.headers.get("If-None-Match") == "*" and (bucket, key) in self.store.objects:
                self.refuse(412, "PreconditionFailed")
                return
            parts = self.store.uploads.pop(self.query["uploadId"])
            data = b"".join(parts[number] for number in sorted(parts))
            self.store.put(bucket, key, data)
            text = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{_etag(data)}</ETag>" \
                   "</CompleteMultipartUploadResult>"  # fmt: skip
        self.send(200, text.encode(), Content_Type="application/xml")

    def _s3_bucket(self, bucket: str, data: bytes) -> None:
        if self.command == "POST":  # several deletions
            gone = [_unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", data.decode())]
            for key in gone:
                self._delete(bucket, key)
            text = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in gone)
            self.send(200, f"<DeleteResult>{text}</DeleteResult>".encode(), Content_Type="application/xml")
            return
        if self.command != "GET" or "list-type" not in self.query:
            self.send(200, b"" if self.command != "GET" else b"<LocationConstraint/>", Content_Type="application/xml")
            return
        found, prefixes = self._listed(bucket, self.query.get("prefix", ""), self.query.get("delimiter", ""))
        found = found[: int(self.query.get("max-keys", 1000))]
        text = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{NOW}</LastModified>"
            f"<ETag>{_etag(self.store.objects[bucket, key])}</ETag>"
            f"<Size>{len(self.store.objects[bucket, key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in found
        )
        text += "".join(f"<CommonPrefixes><Prefix>{escape(quote(p))}</Prefix></CommonPrefixes>" for p in prefixes)
        head = f"<Name>{bucket}</Name><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        head += f"<KeyCount>{len(found) + len(prefixes)}</KeyCount>"
        text = f"<ListBucketResult>{head}{text}</ListBucketResult>"
        self.send(200, text.encode(), Content_Type="application/xml")

    def _listed(self, bucket: str, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        keys, prefixes = [], set()
        for key in self.store.names_of(bucket, prefix):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
            else:
                keys.append(key)
        return keys, sorted(prefixes)

    def _delete(self, bucket: str, key: str) -> bool:
        with self.store.lock:
            self.store.generations.pop((bucket, key), None)
            return self.store.objects.pop((bucket, key), None) is not None


_DATE = "Sat, 28 Nov 2026 12:00:00 GMT"


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _without_chunks(data: bytes) -> bytes:
    """The body that S3's clients send in pieces with their lengths."""
    if not re.match(rb"[0-9a-fA-F]+(;[^\r]*)?\r\n", data):
        return data
    out = b""
    while data:
        head, _, rest = data.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if not size:
            break
        out, data = out + rest[:size], rest[size + 2 :]
    return out


class Hub(Loopback):
    """A model hub.

    models: "org/name" -> {branch: {file: bytes}}. token: what a caller must send to write, and to read `private` ones.
    cut: so many downloads end in the middle.
    """

    def __init__(self, token: str = "hf_loopback"):
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.token = token
        self.cut = 0
        self.lock = threading.RLock()
        self.handler = _HubHandler

    take_cut = Buckets.take_cut

    def commit_of(self, repo: str, revision: str) -> str:
        files = self.models[repo][revision]
        told = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        return hashlib.sha1(repr((repo, revision, told)).encode()).hexdigest()

    def branch(self, repo: str, revision: str) -> str | None:
        """The branch that a revision names: by its own name or by its commit."""
        return next((b for b in self.models.get(repo, {}) if revision in (b, self.commit_of(repo, b))), None)


class _HubHandler(_Handler):
    def do(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self.body()
        try:
            self._answer(path, data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def refuse(self, status: int, code: str) -> None:
        self.send_json({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def _answer(self, path: str, data: bytes) -> None:
        store: Hub = self.server.store
        known = self.headers.get("Authorization") == f"Bearer {store.token}"
        if path == "/api/whoami-v2":
            self.send_json({"name": "someone", "type": "user"}) if known else self.refuse(401, "Unauthorized")
            return
        if self.command in ("POST", "PUT", "DELETE") and not known:
            self.refuse(401, "Unauthorized")
            return
        if path == "/api/repos/create":
            told = json.loads(data)
            repo = f"{told.get('organization') or 'someone'}/{told['name'].rpartition('/')[2]}"
            if repo in store.models:
                self.send_json({"error": "exists", "url": f"{store.url}/{repo}"}, 409)
                return
            store.models[repo] = {"main": {}}
            self.send_json({"url": f"{store.url}/{repo}", "name": repo, "id": repo})
            return
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(.*))?$", path)
        repo, rest = (found[1], found[2] or "") if found else ("", "")
        if repo not in store.models or (repo in store.private and not known):
            self.refuse(404 if known else 401, "RepoNotFound")
            return
        action, _, rest = rest.partition("/")
        revision, _, file = rest.partition("/")
        branch = store.branch(repo, revision or "main")
        if branch is None:
            self.refuse(404, "RevisionNotFound")
            return
        files = store.models[repo][branch]
        if action in ("", "revision"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in sorted(files.items())]
            self.send_json({"id": repo, "modelId": repo, "sha": store.commit_of(repo, branch), "siblings": siblings,
                            "private": repo in store.private, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        elif action == "tree":
            digest = lambda content: hashlib.sha1(content).hexdigest()  # noqa: E731
            self.send_json([{"type": "file", "path": name, "size": len(content), "oid": digest(content)}
                            for name, content in sorted(files.items())])  # fmt: skip
        elif action == "resolve":
            if file not in files:
                self.refuse(404, "EntryNotFound")
                return
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            self.send_range(files[file], X_Repo_Commit=store.commit_of(repo, branch), ETag=etag)
        elif action == "preupload":
            told = json.loads(data)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self.send_json({"files": [{"path": one["path"]} | how for one in told]})
        elif action == "commit":
            for line in filter(None, data.decode().splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = store.commit_of(repo, branch)
            self.send_json({"commitUrl": f"{store.url}/{repo}/commit/{commit}", "commitOid": commit, "hookOutput": ""})
        else:
            self.refuse(404, "EntryNotFound")
