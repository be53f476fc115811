"""Downloads from a server of our own: whole and checked, or not there at all."""

import gzip
import hashlib
import http.server
import sys
import threading
from dataclasses import replace

import pytest

from apical.data import MissingData, mnist
from apical.data.places import download
from test_data_files import tiny_mnist


class Shelf(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012
    cut = False
    status_line = True

    def do_GET(self):
        content = self.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        if not self.status_line:
            self.wfile.write(b"not HTTP\r\n\r\n")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-3] if self.cut else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """(url, handler class) of a server on this machine."""
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APICAL_DATA", raising=False)
    handler = type("Handler", (Shelf,), {"files": {}})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        server.shutdown()
        thread.join()


def test_a_file_arrives_from_the_first_mirror_that_has_it(tmp_path, shelf, capsys):
    url, handler = shelf
    handler.files["f"] = b"content"
    target = tmp_path / "new" / "f"
    found = download((url + "absent", url + "f"), target, md5=hashlib.md5(b"content").hexdigest())
    assert found.read_bytes() == b"content"
    assert capsys.readouterr() == ("", "")  # no bar without a terminal


def test_a_terminal_sees_a_bar(tmp_path, shelf, monkeypatch, capsys):
    url, handler = shelf
    handler.files["some-file"] = b"content"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download((url + "some-file",), tmp_path / "f", md5=None)
    assert "some-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "cut", "reason"),
    [("absent", False, "404"), ("f", True, "got 4 of 7 bytes"), ("f", False, "expected 0123")],
)
def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path, shelf, path, cut, reason):
    url, handler = shelf
    handler.files["f"], handler.cut = b"content", cut
    with pytest.raises(MissingData) as caught:
        download((url + path,), tmp_path / "new" / "f", md5="0123")
    assert url + path in str(caught.value)
    assert reason in str(caught.value)
    assert not list((tmp_path / "new").iterdir())
    handler.status_line = False
    with pytest.raises(MissingData, match="not HTTP"):
        download((url + "f",), tmp_path / "new" / "f", md5="0123")


def test_a_set_is_downloaded_once_into_the_cache(tmp_path, shelf):
    url, handler = shelf
    which, files = tiny_mnist()
    which = replace(which, mirrors=(url,))
    with pytest.raises(MissingData, match=r"404.*Ways to get it"):
        mnist._load(which, None, True)
    handler.files.update({name + ".gz": gzip.compress(c) for name, c in files.items()})
    with pytest.raises(MissingData, match="not allowed"):
        mnist._load(which, None, False)
    data = mnist._load(which, None, True)
    assert len(data.train) == 6
    assert str(tmp_path / "cache") in data.source
    handler.files.clear()
    assert len(mnist._load(which, None, True).train) == 6
