"""Downloads from a local server, mirrors, and everything that can go wrong with them."""

import errno
import hashlib
import http.server
import multiprocessing
import os
import threading

import numpy as np
import pooch
import pytest

from datamodules import sources
from datamodules.sources import Source, SourceError

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("GENPRED_DATA", str(folder))
    monkeypatch.delenv("GENPRED_MIRROR", raising=False)
    return folder


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            if self.path == "/missing":
                self.send_error(404)
                return
            body = {"/wrong": b"a page of a captive portal", "/truncated": CONTENT[:1000]}.get(self.path, CONTENT)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) if self.path == "/truncated" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    requested = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        instance.requested = requested
        instance.url = f"http://127.0.0.1:{instance.server_address[1]}"
        yield instance
        instance.shutdown()
        thread.join()


@pytest.fixture
def register(monkeypatch):
    def add(*urls):
        source = Source("file.bin", "folder/file.bin", urls, (hashlib.sha256(CONTENT).hexdigest(),), "none", "nobody")
        monkeypatch.setitem(sources.SOURCES, source.name, source)

    return add


def assert_nothing_left(home):
    assert [path.name for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_download_is_kept_and_not_repeated(server, register, home):
    register(f"{server.url}/good")
    assert sources.find("file.bin") is None
    path = sources.fetch("file.bin")
    assert path == home / "raw" / "folder" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert sources.fetch("file.bin") == path == sources.find("file.bin")
    assert server.requested == ["/good"]


def test_addresses_are_tried_in_order_and_a_damaged_copy_is_replaced(server, register, home):
    register(f"{server.url}/missing", f"{server.url}/truncated", f"{server.url}/wrong", f"{server.url}/good")
    damaged = home / "raw" / "folder" / "file.bin"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(CONTENT[:-1])
    assert sources.find("file.bin") is None
    assert sources.fetch("file.bin").read_bytes() == CONTENT
    assert server.requested == ["/missing", "/truncated", "/wrong", "/good"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/missing", "404"), ("/truncated", "1000 bytes read"), ("/wrong", "got 26 bytes with SHA-256")],
)
def test_bad_downloads_are_refused_in_words(path, reason, server, register, home):
    register(f"{server.url}{path}")
    with pytest.raises(SourceError) as caught:
        sources.fetch("file.bin")
    message = str(caught.value)
    for part in ("file.bin", f"{server.url}{path}", reason, "GENPRED_MIRROR", "folder/file.bin", str(home)):
        assert part in message
    assert_nothing_left(home)


def test_no_network_names_every_address(register, home):
    urls = ("http://127.0.0.1:9/one", "http://127.0.0.1:9/two")
    register(*urls)
    with pytest.raises(SourceError) as caught:
        sources.fetch("file.bin")
    assert all(url in str(caught.value) for url in urls)
    assert_nothing_left(home)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no room left on the device"), (errno.EROFS, "no permission to write there")]
)
def test_a_cache_that_cannot_be_written_is_named(code, words, server, register, home, monkeypatch):
    register(f"{server.url}/good")
    download = pooch.HTTPDownloader.__call__

    def fail_after_download(self, url, path, *rest):
        download(self, url, path, *rest)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fail_after_download)
    with pytest.raises(SourceError, match=words) as caught:
        sources.fetch("file.bin")
    assert str(home) in str(caught.value)
    assert "GENPRED_DATA" in str(caught.value)
    assert_nothing_left(home)


def test_a_file_in_the_place_of_the_cache_folder(register, home):
    home.write_text("not a folder")
    register("http://127.0.0.1:9/never")
    with pytest.raises(SourceError, match="cannot write"):
        sources.fetch("file.bin")


def test_mirrors_are_used_in_place_and_in_order(register, tmp_path, home, monkeypatch):
    register("http://127.0.0.1:9/never")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (second / "folder").mkdir(parents=True)
    path = second / "folder" / "file.bin"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("GENPRED_MIRROR", os.pathsep.join([str(first), str(second)]))
    assert sources.fetch("file.bin") == path
    assert not home.exists()

    path.write_bytes(CONTENT[::-1])
    with pytest.raises(SourceError, match=f"{path} has SHA-256 .* expected .*GENPRED_MIRROR"):
        sources.fetch("file.bin")
    monkeypatch.setenv("GENPRED_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="nowhere, which is not a folder"):
        sources.fetch("file.bin")


def test_processes_at_once_download_once(server, register):
    register(f"{server.url}/good")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()

    def work():
        barrier.wait()
        results.put(sources.file_sha256(sources.fetch("file.bin")))

    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [hashlib.sha256(CONTENT).hexdigest()] * 3
    for process in processes:
        process.join()
    assert server.requested == ["/good"]


def test_every_source_is_well_formed():
    for name, source in sources.SOURCES.items():
        assert name == source.name
        assert f"/{source.path}".endswith(f"/{name}")
        assert source.urls
        assert all(url.startswith("https://") and name in url for url in source.urls)
        assert source.sha256
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.sha256)


def test_derived_arrays_are_built_once_and_rebuilt_when_damaged(home):
    folder = home / "derived" / "key"
    array = np.arange(12).reshape(3, 4)
    builds = []

    def build():
        builds.append(1)
        return {"array": array}, {"facts": [1, "a"]}

    with pytest.raises(SourceError, match="missing or incomplete"):
        sources.open_arrays(folder)
    for _ in range(2):
        sources.ensure_arrays(folder, build)
        arrays, facts = sources.open_arrays(folder)
        assert isinstance(arrays["array"], np.memmap)
        assert np.array_equal(arrays["array"], array)
        assert facts == {"facts": [1, "a"]}
    assert len(builds) == 1

    path = folder / "array.npy"
    whole = path.read_bytes()
    damages = {
        "a flipped bit": lambda: path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        "a cut file": lambda: path.write_bytes(whole[:-8]),
        "a lost file": path.unlink,
        "no description": (folder / "description.json").unlink,
        "half a description": lambda: (folder / "description.json").write_text('{"sha256": {'),
    }
    for number, (name, damage) in enumerate(damages.items(), start=2):
        damage()
        if name != "a flipped bit":
            with pytest.raises(SourceError, match=r"prepare_data\(\) again"):
                sources.open_arrays(folder)
        sources.ensure_arrays(folder, build)
        assert len(builds) == number, name
        assert path.read_bytes() == whole


def test_an_interrupted_build_leaves_nothing_that_looks_complete(home, monkeypatch):
    folder = home / "derived" / "key"
    save = np.save

    def fail(path, array, **options):
        save(path, array[: len(array) // 2], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def build():
        return {"array": np.arange(100)}, {}

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(SourceError, match="no room left on the device"):
        sources.ensure_arrays(folder, build)
    assert not folder.exists()
    monkeypatch.setattr(np, "save", save)
    sources.ensure_arrays(folder, build)
    assert np.array_equal(sources.open_arrays(folder)[0]["array"], np.arange(100))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["key", "key.lock"]
