"""Weights by name come through one cache: checked, complete, and without a network still located."""

import hashlib
import http.server
import socket
import threading

import pytest

from mask_former.checkpoint import locating

CONTENT = bytes(range(256)) * 40_000  # 10 MB, so that a transfer has several parts
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; what goes wrong is set on the server."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/files/"))
            self.end_headers()
            return
        if not self.path.startswith("/files/"):
            self.send_error(404)
            return
        self.send_content(server)

    def send_content(self, server):
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        if server.silent.wait(timeout=server.silence):
            return
        end = server.interruptions.pop(0) if server.interruptions else len(server.content)
        self.wfile.write(server.content[:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv(locating.CACHE_VARIABLE, str(tmp_path / "cache"))
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.content, served.requests, served.interruptions = CONTENT, [], []
    served.silent, served.silence = threading.Event(), 0
    served.url = f"http://127.0.0.1:{served.server_port}"
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.silent.set()
    served.shutdown()
    served.server_close()
    thread.join()


def test_a_file_is_fetched_once(server):
    url = f"{server.url}/files/model.pkl"
    first = locating.resolve(url, f"md5:{MD5[:6]}")
    assert first.read_bytes() == CONTENT
    assert locating.resolve(url, f"md5:{MD5[:6]}") == first
    assert len(server.requests) == 1
    assert [path.name for path in first.parent.iterdir() if not path.name.endswith(".lock")] == ["model.pkl"]


def test_a_transfer_that_breaks_off_is_tried_again(server):
    server.interruptions = [3_000_000, 1_000_000]
    path = locating.resolve(f"{server.url}/files/model.pkl", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_silent_server_does_not_hang(server, monkeypatch):
    monkeypatch.setattr(locating, "TIMEOUT", 0.2)
    server.silence = 20
    with pytest.raises(ConnectionError, match="timed out"):
        locating.resolve(f"{server.url}/files/model.pkl")
    assert len(server.requests) == locating.ATTEMPTS
    assert socket.getdefaulttimeout() is None


def test_a_file_that_never_comes_whole_is_not_kept(server):
    url = f"{server.url}/files/model.pkl"
    server.interruptions = [1_000_000] * locating.ATTEMPTS
    with pytest.raises(ConnectionError, match="1000000 out of 10240000 bytes"):
        locating.resolve(url)
    assert not locating.cached_path(url).exists()
    server.content = CONTENT[::-1]
    assert locating.resolve(url).read_bytes() == CONTENT[::-1]


def test_a_wrong_hash_is_refused_and_leaves_nothing(server):
    url = f"{server.url}/files/model.pkl"
    with pytest.raises(ValueError, match=f"has md5 {MD5}, expected 123456"):
        locating.resolve(url, "md5:123456")
    assert not [path for path in locating.cached_path(url).parent.iterdir() if path.suffix != ".lock"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server):
    url = f"{server.url}/files/model.pkl"
    path = locating.resolve(url, f"md5:{MD5}")
    path.write_bytes(CONTENT[:-1])
    assert locating.resolve(url, f"md5:{MD5}").read_bytes() == CONTENT


def test_redirects_are_followed_with_the_cache_under_the_name_asked_for(server):
    url = f"{server.url}/moved/model.pkl"
    assert locating.resolve(url, f"md5:{MD5}").read_bytes() == CONTENT
    assert locating.cached_path(url).parent.name == "moved"
    assert server.requests[-1] == "/files/model.pkl"


def test_a_missing_file_is_said_so_at_once(server):
    with pytest.raises(ConnectionError, match="404"):
        locating.resolve(f"{server.url}/nothing.pkl")
    assert len(server.requests) == 1


def test_without_network_the_error_says_where_to_put_the_file(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/files/a.pkl"
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"Cannot download.*put the file at .*cache.*files/a\.pkl"):
        locating.resolve(url)
    path = locating.cached_path(url)
    path.write_bytes(b"by hand")
    assert locating.resolve(url).read_bytes() == b"by hand"


def test_two_threads_fetch_a_file_once(server):
    url = f"{server.url}/files/model.pkl"
    found = []
    threads = [threading.Thread(target=lambda: found.append(locating.resolve(url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [locating.cached_path(url)] * 3
    assert len(server.requests) == 1


def test_detectron2_names_have_their_place_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(locating.CACHE_VARIABLE, str(tmp_path))
    path = tmp_path / "dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    name = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    assert locating.resolve(name) == path
    assert locating.resolve(f"{name}?matching_heuristics=True") == path


def test_hashes_in_published_names_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv(locating.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(locating, "_download", lambda *arguments: pytest.fail(f"downloads {arguments[-1]}"))
    url = "https://dl.fbaipublicfiles.com/maskformer/semantic-ade20k/x/model_final_{}.pkl"
    for digest in (hashlib.md5(b"good").hexdigest()[:6], "000000"):
        path = locating.cached_path(url.format(digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"good")
    assert locating.resolve(url.format(hashlib.md5(b"good").hexdigest()[:6])).read_bytes() == b"good"
    with pytest.raises(pytest.fail.Exception, match="downloads 000000"):
        locating.resolve(url.format("000000"))


def test_a_url_cannot_leave_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(locating.CACHE_VARIABLE, str(tmp_path))
    path = locating.cached_path("https://example.org/%2e%2e/../../a/%2Fetc%2Fpasswd")
    assert path.resolve().is_relative_to(tmp_path / "example.org")


def test_paths_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pkl").write_bytes(b"x")
    assert locating.resolve("mine.pkl").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError, match=r"R-101\.pkl.*mask_former\.convert resnet101"):
        locating.resolve("R-101.pkl")
    with pytest.raises(FileNotFoundError, match=r"mask_former\.convert swin_tiny_patch4_window7_224\.pth"):
        locating.resolve("swin_tiny_patch4_window7_224.pkl")
