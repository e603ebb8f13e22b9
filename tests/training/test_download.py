"""Downloads from a server on this machine: whole, cut and resumed, wrong, absent, unreachable, and archives."""

import hashlib
import io
import re
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from zmpsl.data import download, load, sets
from zmpsl.data.download import SOURCES, Remote, Source, fetch, fetch_source
from zmpsl.errors import DataError
from zmpsl.job.schema import Data

BODY = bytes(range(256)) * 2000  # 512,000 bytes: several reads


def md5(content):
    return hashlib.md5(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; cuts the connection after the numbers of bytes in `cuts`, one per request; keeps a log."""

    daemon_threads = False
    block_on_close = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.log, self.ranges, self.shift = {}, [], [], True, 0
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    timeout = 10

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.log.append((self.path, asked))
        content = server.files.get(self.path[1:])
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + server.cuts.pop(0)] if server.cuts else content[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def one(server, content=BODY, name="a.gz", **kind):
    return Source((server.url,), (Remote(name, md5(content), **kind),))


def visible(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def test_a_file_is_fetched_checked_and_put_in_place(server, tmp_path):
    server.files["a.gz"] = BODY
    assert fetch_source(one(server), tmp_path / "new" / "folder") == [tmp_path / "new" / "folder" / "a.gz"]
    assert (tmp_path / "new" / "folder" / "a.gz").read_bytes() == BODY
    assert visible(tmp_path) == ["new/folder/a.gz"]
    assert server.log == [("/a.gz", None)]


def test_files_already_there_are_left_alone_packed_or_plain(server, tmp_path):
    source = Source((server.url,), (Remote("a.gz", "0"), Remote("b.gz", "0")))
    (tmp_path / "a.gz").write_bytes(b"mine")
    (tmp_path / "b").write_bytes(b"mine too")
    assert fetch_source(source, tmp_path) == []
    assert (tmp_path / "a.gz").read_bytes() == b"mine"
    assert server.log == []


def test_a_download_goes_on_after_each_cut_where_it_ended(server, tmp_path):
    server.files["a.gz"] = BODY
    server.cuts = [100_000, 1, 200_000]
    fetch_source(one(server), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == BODY
    assert [asked for _, asked in server.log] == [None, "bytes=100000-", "bytes=100001-", "bytes=300001-"]


def test_a_download_that_brings_nothing_new_ends_and_is_resumed_by_the_next_run(server, tmp_path):
    server.files["a.gz"] = BODY
    server.cuts = [100_000, 0]
    with pytest.raises(DataError, match="the connection ended after 100000 of 512000 bytes"):
        fetch_source(one(server), tmp_path)
    assert visible(tmp_path) == ["a.gz.part"]
    fetch_source(one(server), tmp_path)
    assert server.log[-1] == ("/a.gz", "bytes=100000-")
    assert (tmp_path / "a.gz").read_bytes() == BODY


def test_a_server_without_ranges_is_read_from_the_beginning(server, tmp_path):
    server.files["a.gz"], server.ranges = BODY, False
    (tmp_path / "a.gz.part").write_bytes(BODY[:70_000])
    fetch_source(one(server), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == BODY


def test_another_range_than_the_one_asked_for_is_not_appended(server, tmp_path):
    server.files["a.gz"], server.shift = BODY, 3
    (tmp_path / "a.gz.part").write_bytes(BODY[:70_000])
    with pytest.raises(DataError, match="asked for bytes 70000-, was sent 'bytes 70003-511999/512000'"):
        fetch_source(one(server), tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize("rest", [b"stale", b"stale" * 200_000])
def test_a_stale_rest_is_thrown_away_and_fetched_anew(server, tmp_path, rest):
    server.files["a.gz"] = BODY
    (tmp_path / "a.gz.part").write_bytes(rest)
    fetch_source(one(server), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == BODY
    assert [asked for _, asked in server.log] == [f"bytes={len(rest)}-", None]


def test_a_whole_rest_is_taken_as_it_is(server, tmp_path):
    server.files["a.gz"] = BODY
    (tmp_path / "a.gz.part").write_bytes(BODY)
    fetch_source(one(server), tmp_path)
    assert [asked for _, asked in server.log] == [f"bytes={len(BODY)}-"]
    assert visible(tmp_path) == ["a.gz"]


def test_a_wrong_checksum_is_told_and_nothing_is_kept(server, tmp_path):
    server.files["a.gz"] = b"something else"
    with pytest.raises(DataError, match=f"md5 is {md5(b'something else')}, expected {md5(BODY)}"):
        fetch_source(one(server), tmp_path)
    assert visible(tmp_path) == []


def test_absent_and_unreachable_files_name_url_folder_and_what_to_do_by_hand(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(DataError) as e:
            fetch("mnist", tmp_path, [refusing, server.url])
    for part in (
        f"{refusing}train-images-idx3-ubyte.gz: ", "refused", f"{server.url}train-images-idx3-ubyte.gz: HTTP 404",
        "fetch it on another machine (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)", f"into {tmp_path}",
    ):  # fmt: skip
        assert part in str(e.value)
    assert visible(tmp_path) == []


def test_the_next_host_is_asked_when_the_first_has_a_wrong_file(server, tmp_path):
    server.files.update({"bad/a.gz": b"wrong", "good/a.gz": BODY})
    fetch_source(Source((server.url + "bad", server.url + "good/"), one(server).files), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == BODY


def test_a_server_that_sends_without_end_is_stopped(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LIMIT_BYTES", 100_000)
    server.files["a.gz"] = BODY
    with pytest.raises(DataError, match="sends more than 100000 bytes"):
        fetch_source(one(server), tmp_path)
    assert visible(tmp_path) == []


def test_a_folder_that_cannot_be_written_and_an_unknown_name_are_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=f"cannot write data to {tmp_path / 'file'}"):
        fetch("mnist", tmp_path / "file")
    with pytest.raises(DataError, match="'text' cannot be downloaded, only mnist, fashion-mnist, cifar10, cifar100"):
        fetch("text", tmp_path)


def test_only_one_of_several_owners_fetches(server, tmp_path):
    server.files["a.gz"] = BODY
    placed = []
    threads = [threading.Thread(target=lambda: placed.append(fetch_source(one(server), tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(len, placed)) == [0, 0, 0, 1]
    assert len(server.log) == 1


def test_official_fashion_labels_pass_their_published_checksums(server, tmp_path, shared_data):
    names = [remote.name for remote in SOURCES["fashion-mnist"].files]
    for name in names:
        content = (shared_data / "fashion-mnist" / name).read_bytes()
        if "labels" in name:
            server.files[name] = content
        else:  # the image files there have another gzip wrapper, hence another md5
            (tmp_path / name).write_bytes(content)
    placed = fetch("fashion-mnist", tmp_path, [server.url])
    assert [path.name for path in placed] == [name for name in names if "labels" in name]
    assert len(load(Data(name="fashion-mnist", dir=str(tmp_path)), 0).test) == 10_000


def tar_gz(**members):
    """An archive; a member given as text is a symbolic link to there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o4777
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


RECORD = np.arange(3073, dtype=np.uint8).tobytes()
MEMBERS = ("cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-bin/test_batch.bin")


def test_an_archive_gives_its_expected_members_and_nothing_else(server, tmp_path):
    others = {"../../outside": b"x", "cifar-10-batches-bin/readme.html": b"x"}
    archive = tar_gz(**{MEMBERS[0]: RECORD, **others, MEMBERS[1]: RECORD})
    server.files["c.tar.gz"] = archive
    source, folder = one(server, archive, "c.tar.gz", members=MEMBERS), tmp_path / "a" / "b"
    assert fetch_source(source, folder) == [folder / name for name in MEMBERS]
    assert visible(tmp_path) == [f"a/b/{name}" for name in MEMBERS]
    assert (folder / MEMBERS[0]).stat().st_mode & 0o7111 == 0
    assert len(load(Data(name="cifar10", dir=str(folder)), 0).train) == 1
    assert fetch_source(source, folder) == []
    assert len(server.log) == 1


def test_load_fetches_only_when_asked_to_and_only_what_is_missing(server, tmp_path, monkeypatch):
    server.files["c.tar.gz"] = archive = tar_gz(**dict.fromkeys(MEMBERS, RECORD))
    source = one(server, archive, "c.tar.gz", members=MEMBERS)
    monkeypatch.setattr(sets, "fetch", lambda name, folder: fetch_source(source, folder))
    with pytest.raises(DataError, match=r"did not find .* or set data.download: true"):
        load(Data(name="cifar10", dir=str(tmp_path)), 0)
    assert server.log == []
    for _ in range(2):
        assert len(load(Data(name="cifar10", dir=str(tmp_path), download=True), 0).test) == 1
    assert len(server.log) == 1
    load(Data(name="digits", download=True), 0)  # comes with scikit-learn: nothing to fetch


def test_an_archive_put_there_by_hand_is_unpacked_without_a_network(server, tmp_path):
    archive = tar_gz(**dict.fromkeys(MEMBERS, RECORD))
    source = one(server, archive, "c.tar.gz", members=MEMBERS)
    (tmp_path / "c.tar.gz").write_bytes(archive[:-9])
    with pytest.raises(DataError, match=r"c\.tar\.gz: md5 is .*, expected .*: delete it"):
        fetch_source(source, tmp_path)
    (tmp_path / "c.tar.gz").write_bytes(archive)
    fetch_source(source, tmp_path)
    assert visible(tmp_path) == ["c.tar.gz", *MEMBERS]
    assert server.log == []


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar_gz(**{MEMBERS[0]: RECORD}), "lacks cifar-10-batches-bin/test_batch.bin"),
        (tar_gz(**{MEMBERS[0]: RECORD, MEMBERS[1]: "/etc/passwd"}), "lacks cifar-10-batches-bin/test_batch.bin"),
        (b"no archive", "damaged archive"),
        (tar_gz(**dict.fromkeys(MEMBERS, RECORD * 50))[:-400], "damaged archive"),
    ],
)
def test_an_archive_that_is_damaged_or_lacks_a_member_leaves_no_half_files(server, tmp_path, archive, message):
    server.files["c.tar.gz"] = archive
    with pytest.raises(DataError, match=message):
        fetch_source(one(server, archive, "c.tar.gz", members=MEMBERS), tmp_path)
    assert visible(tmp_path) == ["c.tar.gz"]


def test_the_official_sources_are_complete():
    for source in SOURCES.values():
        assert all(re.fullmatch(r"[0-9a-f]{32}", remote.md5) for remote in source.files)
        assert all(url.startswith(("http://", "https://")) for url in source.base_urls)
    assert [len(source.files) for source in SOURCES.values()] == [4, 4, 1, 1]
    assert [len(remote.members) for name in ("cifar10", "cifar100") for remote in SOURCES[name].files] == [6, 2]
