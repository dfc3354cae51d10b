"""CIFAR: what is missing, and downloads."""

import http.server
import socket
import subprocess
import sys
import textwrap
import threading
import time

import cifar_archive
import pytest

from jaxrobust import data
from jaxrobust.data import archives

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test

CIFAR = ("cifar10", "cifar100")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", CIFAR)
def test_missing_data_say_what_to_place_within_a_second(tmp_path, no_network, name):
    archive = archives.ARCHIVES[name]
    started = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    assert time.monotonic() - started < 1
    wanted = (str(tmp_path), archive.file_name, archive.url, f"{name}/<version>", "download=True")
    assert [words for words in wanted if words not in str(error.value)] == []


@pytest.mark.parametrize("name", CIFAR)
def test_data_dir_is_asked_for(tmp_path, name):
    with pytest.raises(
        ValueError, match=rf"'{name}' needs `data_dir`.*python\.tar\.gz.*download=True"
    ):
        data.load(name, download=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere'.*download=True"):
        data.load(name, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`data_dir` must be the folder"):
        data.load(name, tmp_path / "file")


def test_download_without_a_network_fails_at_once(tmp_path, no_network):
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"name resolution.*save it as '.*cifar-10-python"):
        data.load("cifar10", tmp_path, download=True)
    assert time.monotonic() - started < 5
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("name", ["sports10", "image_folder", "cifar10_jpeg"])
def test_download_is_refused_where_there_is_nothing_to_download(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`download` must be False for '{name}'"):
        data.load(name, tmp_path, download=True)


@pytest.fixture
def server(monkeypatch):
    """A server that sends `content`, less and differently where asked to; counts requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            if server.status != 200:
                self.send_error(server.status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[: server.sent])
            if server.sent is not None:
                self.wfile.flush()
                server.stop.wait(server.silence)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.sent, server.status, server.requests = b"", None, 200, []
    server.silence, server.stop = 0, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/cifar-10-python.tar.gz"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """The small archive, to be had from the server; gives the folder to download to."""
    path = cifar_archive.write(tmp_path / "site.tar.gz", cifar_archive.members("cifar10"))
    path = path.rename(tmp_path / "published")
    server.content = path.read_bytes()
    archive = cifar_archive.official("cifar10", server.content, server.url)
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", archive)
    return tmp_path / "new" / "data"


def test_download(published, server, capsys):
    cifar_archive.check(data.load("cifar10", published, download=True), "cifar10")
    cifar_archive.check(data.load("cifar10", published, download=True), "cifar10")
    assert server.requests == ["/cifar-10-python.tar.gz"]
    assert (published / "cifar-10-python.tar.gz").read_bytes() == server.content
    said = capsys.readouterr()
    assert said.out == "" and "Downloading cifar-10-python.tar.gz" in said.err
    assert {path.name for path in published.iterdir()} == {"cifar-10-python.tar.gz", "cifar10"}


def test_placed_archive_is_not_downloaded(published, server):
    published.mkdir(parents=True)
    (published / "cifar-10-python.tar.gz").write_bytes(server.content)
    cifar_archive.check(data.load("cifar10", published, download=True), "cifar10")
    assert server.requests == []


def test_broken_off_transfer_never_counts(published, server):
    server.sent = 5000
    with pytest.raises(ConnectionError, match=r"broke off; 5,000 of [\d,]+ bytes"):
        data.load("cifar10", published, download=True)
    assert list(published.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        data.load("cifar10", published)
    server.sent = None
    cifar_archive.check(data.load("cifar10", published, download=True), "cifar10")


def test_silent_server_is_given_up(published, server, monkeypatch):
    monkeypatch.setattr(archives, "_TIMEOUT", 0.3)
    server.sent, server.silence = 5000, 20
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"timed out"):
        data.load("cifar10", published, download=True)
    assert time.monotonic() - started < 5
    assert list(published.iterdir()) == []


def test_error_of_the_server_is_told(published, server):
    server.status = 503
    with pytest.raises(ConnectionError, match=r"503.*0 of"):
        data.load("cifar10", published, download=True)


def test_download_of_another_file_is_not_kept(published, server):
    server.content = server.content[:-1] + b"?"
    with pytest.raises(ValueError, match=r"SHA-256.*Nothing was kept"):
        data.load("cifar10", published, download=True)
    server.content += b"and more"
    with pytest.raises(ValueError, match=r"Nothing was kept"):
        data.load("cifar10", published, download=True)
    assert list(published.iterdir()) == []


def test_killed_download_leaves_nothing_that_counts(published, server):
    server.sent, server.silence = 5000, 20
    script = """
        import dataclasses, sys
        from jaxrobust import data
        from jaxrobust.data import archives
        known = archives.ARCHIVES["cifar10"]
        archives.ARCHIVES["cifar10"] = dataclasses.replace(known, url=sys.argv[2])
        data.load("cifar10", sys.argv[1], download=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(published), server.url]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (published.is_dir() and list(published.glob("scratch-*/*"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    with pytest.raises(FileNotFoundError):
        data.load("cifar10", published)
