"""tools/download_weights.py: interrupted downloads go on, and nothing takes a released file's place unless it loads as one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from running import load_tool

from pretrain.weights import download as weights_download
from pretrain.weights.download import GROUPS, check, download, names_of, place_of
from pretrain.weights.published import PUBLISHED_FILES
from pretrain.weights.resumable_download import DownloadError, check_content, fetch

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
NAME = 'addp-vit-base-16'
PLACE = Path('exp/release/addp-vit-base-16.pth')
CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves ``files`` with ranges and ETags; the first ``cuts`` answers end after ``cut_at`` bytes."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tags = True
        self.cuts, self.cut_at = 0, 4000
        self.ranges: list[str | None] = []  # asked for, of each request for a file

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def offer_on_hub(self, content: bytes, folder: str = 'weights/') -> None:
        """Imitates the hub's description of a model repository that holds the released file."""
        repo, file = PUBLISHED_FILES[NAME].hub_repo, f'{folder}{PLACE.name}'
        lfs = dict(sha256=hashlib.sha256(content).hexdigest(), size=len(content), pointerSize=1)
        info = dict(
            id=repo,
            sha='abc',
            siblings=[dict(rfilename='README.md', size=1), dict(rfilename=file, size=len(content), lfs=lfs)],
        )
        self.files[f'/api/models/{repo}?blobs=true'] = json.dumps(info).encode()
        self.files[f'/{repo}/resolve/abc/{file}'] = content


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked, first = self.headers.get('Range'), 0
        if 'api' not in self.path:
            self.server.ranges.append(asked)
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        if asked and self.headers.get('If-Range') in (None, tag):
            first = int(asked.removeprefix('bytes=').rstrip('-'))
        if first > len(content) or (first and first == len(content)):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        if self.server.tags:
            self.send_header('ETag', tag)
        self.send_header('Content-Length', str(len(content) - first))
        self.end_headers()
        end = len(content)
        if self.server.cuts and 'api' not in self.path:
            self.server.cuts -= 1
            end = min(end, first + self.server.cut_at)
        self.wfile.write(content[first:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.files['/file'] = CONTENT
    monkeypatch.setenv('HF_ENDPOINT', server.url)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def released(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with the names and shapes of the released ViT-Base, without numbers."""
    shapes = json.loads((GOLDEN / 'addp_vit_base_patch16.keys.json').read_text())
    path = tmp_path_factory.mktemp('released') / 'addp.pth'
    torch.save(dict(model={name: torch.empty(shape, device='meta') for name, shape in shapes.items()}), path)
    return path.read_bytes()


def test_a_connection_that_ends_early_is_taken_up_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    seen: list[tuple[int, int | None]] = []
    fetch(f'{server.url}/file', tmp_path / 'part', lambda done, total: seen.append((done, total)), wait_s=0.01)
    assert (tmp_path / 'part').read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=4000-', 'bytes=8000-']
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ['part']


def test_a_download_that_gave_up_goes_on_when_started_again(server: Server, tmp_path: Path) -> None:
    server.cuts = 1
    with pytest.raises(DownloadError, match='4000 bytes have arrived and stay'):
        fetch(f'{server.url}/file', tmp_path / 'part', attempts=1)
    fetch(f'{server.url}/file', tmp_path / 'part', attempts=1)
    assert (tmp_path / 'part').read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=4000-']


def test_a_file_that_changed_on_the_server_is_not_stitched_to_the_old_one(server: Server, tmp_path: Path) -> None:
    server.cuts = 1
    with pytest.raises(DownloadError):
        fetch(f'{server.url}/file', tmp_path / 'part', attempts=1)
    server.files['/file'] = CONTENT[::-1]
    fetch(f'{server.url}/file', tmp_path / 'part', attempts=1)
    assert (tmp_path / 'part').read_bytes() == CONTENT[::-1]


def test_without_a_tag_that_tells_files_apart_a_part_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.cuts, server.tags = 1, False
    fetch(f'{server.url}/file', tmp_path / 'part', wait_s=0.01)
    assert (tmp_path / 'part').read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_part_that_was_complete_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / 'part').write_bytes(CONTENT)
    (tmp_path / 'part.etag').write_text(f'"{hashlib.sha256(CONTENT).hexdigest()[:8]}"')
    fetch(f'{server.url}/file', tmp_path / 'part', attempts=1)
    assert (tmp_path / 'part').read_bytes() == CONTENT


def test_a_refusal_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match='404'):
        fetch(f'{server.url}/nothing', tmp_path / 'part', wait_s=60)


def test_content_is_compared_with_size_and_checksum(tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    check_content(tmp_path / 'file', len(CONTENT), digest)
    check_content(tmp_path / 'file', sha256=digest[:8])
    with pytest.raises(DownloadError, match='bytes, wanted'):
        check_content(tmp_path / 'file', 1)
    with pytest.raises(DownloadError, match='SHA-256'):
        check_content(tmp_path / 'file', sha256='0' * 8)


def test_a_released_file_is_found_on_the_hub_resumed_loaded_and_put_in_its_place(
    server: Server, tmp_path: Path, released: bytes
) -> None:
    server.offer_on_hub(released)
    server.cuts = 1
    found = download(NAME, tmp_path)
    assert 'tensors load' in found and 'no tokenizer' in found
    assert (tmp_path / PLACE).read_bytes() == released
    assert len(server.ranges) == 2 and server.ranges[1] == 'bytes=4000-'
    assert [path.name for path in (tmp_path / PLACE.parent).iterdir()] == [PLACE.name]
    download(NAME, tmp_path)
    assert len(server.ranges) == 2, 'a file that is there is not fetched again'


@pytest.mark.parametrize('content', [b'<html>too many downloads</html>', b''], ids=['html', 'empty'])
def test_what_is_no_checkpoint_is_refused_and_removed(server: Server, tmp_path: Path, content: bytes) -> None:
    server.offer_on_hub(content)
    with pytest.raises(DownloadError, match='refused and removed'):
        download(NAME, tmp_path)
    assert list((tmp_path / PLACE.parent).iterdir()) == []


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    torch.save(dict(model={'patch_embed.proj.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    for name in ('addp-vit-base-16', 'vqgan_jax_strongaug', 'mage-vitb-1600'):
        with pytest.raises(DownloadError, match='is missing'):
            check(name, tmp_path / 'other.pth')
    with pytest.raises(DownloadError, match='SHA-256'):
        check('inception', tmp_path / 'other.pth')


def test_a_file_that_changed_on_the_way_is_refused_by_the_hubs_checksum(
    server: Server, tmp_path: Path, released: bytes
) -> None:
    server.offer_on_hub(released)
    path = next(path for path in server.files if 'resolve' in path)
    server.files[path] = released[:-1] + bytes([released[-1] ^ 1])
    with pytest.raises(DownloadError, match='SHA-256'):
        download(NAME, tmp_path)


def test_a_repository_without_the_file_is_listed(server: Server, tmp_path: Path) -> None:
    server.offer_on_hub(b'')
    path = next(path for path in server.files if 'api' in path)
    server.files[path] = server.files[path].replace(PLACE.name.encode(), b'other.pth')
    with pytest.raises(DownloadError, match=r'holds no addp-vit-base-16.pth; it holds README.md, weights/other.pth'):
        download(NAME, tmp_path)


def test_without_network_the_command_says_how_to_get_every_file_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')  # discard: nobody listens
    monkeypatch.setattr(weights_download, 'URL_INCEPTION_V3', 'http://127.0.0.1:9/none.pth')
    monkeypatch.setattr('pretrain.weights.resumable_download.time.sleep', lambda seconds: None)
    monkeypatch.setattr(weights_download, '_fetch_from_drive', unreachable)
    assert load_tool('download_weights').main(['--root', str(tmp_path)]) == 1
    text = capsys.readouterr().err
    for name in GROUPS['all']:
        assert str(place_of(name, tmp_path)) in text
    for published in PUBLISHED_FILES.values():
        assert published.page in text


def unreachable(*_: object) -> None:
    raise DownloadError('unreachable')


@pytest.mark.skipif(importlib.util.find_spec('gdown') is not None, reason='gdown is installed')
def test_without_gdown_the_message_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match='pip install gdown'):
        download('vqgan_jax_strongaug', tmp_path)


def test_groups_name_what_each_size_needs_and_unknown_names_are_refused() -> None:
    assert names_of(['base', 'mage-vitb-1600']) == [
        'addp-vit-base-16',
        'vqgan_jax_strongaug',
        'mage-vitb-1600',
        'inception',
    ]
    assert set(names_of(['all'])) == {*PUBLISHED_FILES, 'inception'}
    with pytest.raises(DownloadError, match='unknown weights'):
        names_of(['huge'])
