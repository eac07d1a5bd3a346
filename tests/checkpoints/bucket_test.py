"""T5X checkpoints in a bucket (gs://) are read and written as local ones are.

The bucket is a server in this process that speaks as much of Google Cloud Storage as TensorFlow, which is epath's file
system for gs://, and tensorstore need. Both read the environment once, so another process (this file as a program)
reads the bucket, and does with it what the tests do with a local folder of the same files.
"""

import hashlib
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple
from urllib import parse

import pytest
from etils import epath

from promot_t5x.checkpoints import formats, sources, stored_leaves
from promot_t5x.checkpoints.t5x import reader, writer

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "gs://bucket"
LEGACY, ORBAX, SCANNED = (f"{name}/checkpoint_0" for name in ("t5_legacy", "t5_orbax", "scalable_t5_orbax"))
WRITTEN = "written/checkpoint_7"
LOST_IN_LEGACY, LOST_IN_ORBAX = "lost_in_legacy/checkpoint_0", "lost_in_orbax/checkpoint_0"
SEVERAL = "several"
PATHS = (LEGACY, ORBAX, SCANNED, WRITTEN, LOST_IN_LEGACY, LOST_IN_ORBAX, SEVERAL)
READERS = {
    "t5x_checkpoint": lambda path: reader.read(epath.Path(path)),
    "formats": lambda path: sources.open_source(path).leaves,
}

both_readers = pytest.mark.parametrize("reader", READERS)


class _Storage(http.server.BaseHTTPRequestHandler):
    """Google Cloud Storage with one bucket, `bucket`, whose objects are the server's dict `objects`.

    TensorFlow knows no other address than Google's. But it takes the proxy, and trusts the certificate,
    that the environment names: so this is also a proxy, which answers in Google's place.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two packets, and the second would wait 40 ms for the first's receipt

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.setup()

    def do_GET(self):
        url = parse.urlsplit(self.path)
        query = dict(parse.parse_qsl(url.query))
        if url.path == "/storage/v1/b/bucket":
            self._answer_json({"name": "bucket"})
        elif url.path == "/storage/v1/b/bucket/o":
            self._answer_json(self._listing(query.get("prefix", ""), query.get("delimiter")))
        elif not (match := re.fullmatch("(/storage/v1/b/bucket/o|/bucket)/([^/]+)", url.path)):
            self._answer(400)
        elif (name := parse.unquote(match[2])) not in self.server.objects:
            self._answer(404)
        elif match[1] == "/bucket" or query.get("alt") == "media":
            self._answer_data(self.server.objects[name])
        else:
            self._answer_json(self._metadata(name))

    def do_POST(self):
        url = parse.urlsplit(self.path)
        query = dict(parse.parse_qsl(url.query))
        data = self._body()
        if url.path != "/upload/storage/v1/b/bucket/o":
            self._answer(400)
        elif query["uploadType"] == "resumable":  # TensorFlow asks for a place, and puts the data there
            place = self.path.replace("uploadType=resumable", "uploadType=media")
            self._answer(200, headers={"Location": f"https://www.googleapis.com{place}"})
        else:
            self.server.objects[query["name"]] = data
            self._answer_json(self._metadata(query["name"]))

    do_PUT = do_POST

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        data, size = b"", -1
        while size:
            size = int(self.rfile.readline(), 16)
            data += self.rfile.read(size)
            self.rfile.readline()
        return data

    def _listing(self, prefix, delimiter):
        names, folders = [], set()
        for name in sorted(name for name in self.server.objects if name.startswith(prefix)):
            inside = name[len(prefix) :]
            if delimiter and delimiter in inside:
                folders.add(prefix + inside.split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        return {"items": [self._metadata(name) for name in names], "prefixes": sorted(folders)}

    def _metadata(self, name):
        size = str(len(self.server.objects[name]))
        return {"name": name, "size": size, "generation": "1", "updated": "2020-01-01T00:00:00.000Z"}

    def _answer_data(self, data):
        if "Range" not in self.headers:
            return self._answer(200, data)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        part = data[int(first) : int(last) + 1 if last else None]
        if not part:
            return self._answer(416)
        return self._answer(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})

    def _answer_json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, data=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def finish(self):
        super().finish()
        self.request.close()  # the server itself closes the socket that was there before do_CONNECT

    def log_message(self, *_):
        """Nothing: thousands of lines."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # tensorstore connects many times at once, and one that is turned away waits a second


class Outcome(NamedTuple):
    """The answers for all paths, in the bucket and locally, and the files under WRITTEN."""

    bucket: dict[str, dict]
    here: dict[str, dict]
    bucket_files: dict[str, bytes]
    files_here: dict[str, bytes]


def _answers(root):
    """Writes WRITTEN from LEGACY. Then what each reader makes of each path: its leaves, or the sentence of an error."""
    source = sources.open_source(f"{root}/{LEGACY}")
    writer.write_legacy(f"{root}/{WRITTEN}", formats.as_named(source.leaves, source.config, "t5x_legacy"), 7)
    return {
        reader: {path: _answer(read, f"{root}/{path}") for name in PATHS for path in (name, f"{name}/")}
        for reader, read in READERS.items()
    }


def _answer(read, path):
    try:
        return {
            name: [list(leaf.shape), leaf.dtype.name, hashlib.sha256(stored_leaves.whole(leaf).tobytes()).hexdigest()]
            for name, leaf in read(path).items()
        }
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _objects(testdata):
    tiny = testdata / "t5x_tiny"
    objects = {}
    for path in (LEGACY, ORBAX, SCANNED):
        objects |= {f.relative_to(tiny).as_posix(): f.read_bytes() for f in (tiny / path).rglob("*") if f.is_file()}
    for name, data in list(objects.items()):
        if name.startswith(LEGACY) and "target.token_embedder.embedding/" not in name:
            objects[name.replace(LEGACY, LOST_IN_LEGACY)] = data
        if name.startswith(ORBAX):
            objects[name.replace(ORBAX, LOST_IN_ORBAX)] = data
    metadata = f"{LOST_IN_ORBAX}/state/_METADATA"
    objects[metadata] = objects[metadata].replace(b'"scale"', b'"weight"')
    for folder in ("checkpoint_1000", "checkpoint_20", "checkpoint_3", "checkpoint_40.tmp-123"):
        objects[f"{SEVERAL}/{folder}/checkpoint"] = objects[f"{LEGACY}/checkpoint"]
    return objects


@pytest.fixture(scope="module")
def outcome(testdata, tmp_path_factory) -> Outcome:
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl, which makes the certificate of the bucket's server")
    objects, folder, tls = _objects(testdata), tmp_path_factory.mktemp("bucket"), tmp_path_factory.mktemp("tls")
    for name, data in objects.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    hosts = "subjectAltName=DNS:www.googleapis.com,DNS:storage.googleapis.com"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=bucket -days 2"
    command = [*command.split(), "-addext", hosts, "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=tls, check=True, capture_output=True)
    with _Server(("127.0.0.1", 0), _Storage) as server:
        server.objects = objects
        server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.tls.load_cert_chain(tls / "certificate.pem", tls / "key.pem")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # both: no look for credentials
            "TENSORSTORE_GCS_HTTP_URL": address,
            "HTTPS_PROXY": address,  # TensorFlow, as the next
            "CURL_CA_BUNDLE": str(tls / "certificate.pem"),
        }
        try:
            command = [sys.executable, __file__, BUCKET]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        finally:
            server.shutdown()
    assert done.returncode == 0, done.stderr[-5000:]
    # TensorFlow makes objects for folders, too, with a name that ends in a slash.
    bucket_files = {name: data for name, data in objects.items() if name.startswith(WRITTEN) and name[-1] != "/"}
    here = json.loads(json.dumps(_answers(folder)).replace(str(folder), BUCKET))
    files = [file for file in (folder / WRITTEN).rglob("*") if file.is_file()]
    files_here = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return Outcome(json.loads(done.stdout), here, bucket_files, files_here)


@both_readers
@pytest.mark.parametrize("path, leaves", [(LEGACY, 52), (ORBAX, 52), (SCANNED, 29)])
def test_a_checkpoint_in_a_bucket_has_the_bits_of_the_local_one(outcome, reader, path, leaves):
    assert len(outcome.here[reader][path]) == leaves
    assert outcome.bucket[reader][path] == outcome.here[reader][path]


@both_readers
@pytest.mark.parametrize("path", PATHS)
def test_a_trailing_slash_changes_nothing(outcome, reader, path):
    assert outcome.bucket[reader][f"{path}/"] == outcome.bucket[reader][path]


def test_a_checkpoint_is_written_to_a_bucket_as_locally(outcome):
    assert outcome.bucket_files == outcome.files_here
    assert len(outcome.bucket_files) == 1 + 2 * 52


@both_readers
def test_what_was_written_to_a_bucket_is_read_from_it(outcome, reader):
    assert len(outcome.bucket[reader][WRITTEN]) == 52
    assert outcome.bucket[reader][WRITTEN] == outcome.here[reader][LEGACY]


def test_a_folder_of_several_checkpoints_lists_them(outcome):
    names = "checkpoint_3, checkpoint_20, checkpoint_1000: give the path of one."
    expected = f"ValueError: {BUCKET}/{SEVERAL} is not a checkpoint but holds 3 of them, {names}"
    assert outcome.bucket["t5x_checkpoint"][SEVERAL] == expected
    assert outcome.bucket["formats"][SEVERAL] == f"ValueError: {BUCKET}/{SEVERAL} is not a checkpoint, it holds {names}"


@both_readers
@pytest.mark.parametrize(
    "path, array",
    [
        (LOST_IN_LEGACY, "target.token_embedder.embedding of the parameter token_embedder/embedding"),
        (LOST_IN_ORBAX, "state/target.decoder.decoder_norm.weight of the parameter decoder/decoder_norm/weight"),
    ],
)
def test_a_missing_array_is_the_same_error_as_locally(outcome, reader, path, array):
    sentence = outcome.bucket[reader][path]
    assert sentence.startswith(f"FileNotFoundError: The array {BUCKET}/{path}/{array} does not exist, though the")
    assert sentence == outcome.here[reader][path]


if __name__ == "__main__":
    print(json.dumps(_answers(sys.argv[1])))
