"""Downloads from a server on this machine: verified, or nothing is kept."""

import hashlib
import http.server
import os
import queue
import socket
import threading

import pytest

from ddpm_jax.data import download
from ddpm_jax.data.download import download_file

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def server():
    """Yields (url, answers): each request is answered by calling the next of `answers`."""
    answers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers.pop(0)(self)

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments):  # a client that leaves is what these tests are about
            pass

    with Server(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}/data.bin", answers
        served.shutdown()
        thread.join()


def send(content, claimed=None):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(claimed or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def fetch(url, destination, **options):
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return download_file([url], destination, **{**known, **options})


def test_a_good_download_gets_its_name_and_reports_progress(server, tmp_path):
    url, answers = server
    answers.append(send(CONTENT))
    reports = []
    path = fetch(url, tmp_path / "new" / "data.bin", progress=lambda *pair: reports.append(pair))
    assert path == tmp_path / "new" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] == len(CONTENT)
    assert set(totals) == {len(CONTENT)}


def test_by_default_nothing_is_shown_where_there_is_no_terminal(server, tmp_path, capfd):
    url, answers = server
    answers.append(send(CONTENT))
    fetch(url, tmp_path / "data.bin")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (send(CONTENT[:-1] + b"!"), ValueError, "sha256"),
        (send(CONTENT[:-1]), ValueError, "1,048,575 bytes"),
        (send(CONTENT + b"!"), ValueError, "more than 1,048,576 bytes"),
        (send(b"<html>log in here</html>"), ValueError, "captive portal"),
        (send(CONTENT[:5000], claimed=len(CONTENT)), (ValueError, ConnectionError), "bytes|broke"),
        (lambda handler: handler.send_error(404), ConnectionError, "404"),
    ],
)
def test_a_bad_download_leaves_nothing_and_keeps_the_old_file(
    server, tmp_path, answer, error, match
):
    url, answers = server
    answers.append(answer)
    (tmp_path / "data.bin").write_text("old")
    with pytest.raises(error, match=match) as caught:
        fetch(url, tmp_path / "data.bin")
    assert url in str(caught.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("data.bin", "old")]


def test_a_refused_connection_is_a_connection_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match="could not be opened"):
        fetch(f"http://127.0.0.1:{port}/data.bin", tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_is_asked_when_one_fails(server, tmp_path):
    url, answers = server
    answers += [lambda handler: handler.send_error(503), send(CONTENT)]
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    path = download_file([url, url + "?second"], tmp_path / "data.bin", **known)
    assert path.read_bytes() == CONTENT
    answers += [lambda handler: handler.send_error(503), lambda handler: handler.send_error(404)]
    with pytest.raises(ConnectionError, match="503.*second.*404"):
        download_file([url, url + "?second"], tmp_path / "other.bin", **known)


@pytest.mark.parametrize("mirrors", [1, 2])
@pytest.mark.parametrize("where", ["name look-up", "answer"])
def test_silence_ends_at_the_deadline_wherever_it_falls(
    server, tmp_path, monkeypatch, where, mirrors
):
    """A look-up blocks in C and knows no time-out of its own: the deadline has to be ours.

    Nothing is released before the error, so a client that waits for the other side sees it give up.
    """
    url, answers = server
    release, gave_up = threading.Event(), []

    def silence(*arguments, **options):
        gave_up.append(not release.wait(5))
        raise OSError("silent to the end")

    answers += [silence] * mirrors
    if where == "name look-up":
        monkeypatch.setattr(socket, "getaddrinfo", silence)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.1)
    known = {"size": len(CONTENT), "sha256": "0" * 64}
    try:
        with pytest.raises(ConnectionError, match=f"did not answer within {0.1 / mirrors:g} s"):
            download_file([url] * mirrors, tmp_path / "data.bin", **known)
        assert gave_up == []
    finally:
        release.set()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_without_end_is_left(server, tmp_path):
    url, answers = server
    sent = []

    def pour(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(CONTENT)
            sent.append(len(CONTENT))

    answers.append(pour)
    with pytest.raises(ValueError, match="more than"):
        fetch(url, tmp_path / "data.bin")
    assert len(sent) < 100


def test_a_stall_in_the_middle_is_a_connection_error(server, tmp_path, monkeypatch):
    url, answers = server
    stalled: queue.SimpleQueue = queue.SimpleQueue()

    def stall(handler):
        send(CONTENT[:5000], claimed=len(CONTENT))(handler)
        handler.wfile.flush()
        stalled.get(timeout=30)

    answers.append(stall)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
    try:
        with pytest.raises(ConnectionError, match="broke off.*timed out"):
            fetch(url, tmp_path / "data.bin")
    finally:
        stalled.put(None)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="writable cache_dir"):
        fetch("http://127.0.0.1:9/data.bin", tmp_path / "file" / "data.bin")


def test_a_download_is_on_the_disk_before_it_has_its_name(server, tmp_path, monkeypatch):
    """After a loss of power an empty file under that name would have to be removed by hand."""
    url, answers = server
    answers.append(send(CONTENT))
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    fetch(url, tmp_path / "data.bin")
    assert synced == [len(CONTENT)]
