"""tools/download_weights.py: interrupted downloads go on; only what loads as a released file becomes one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from running import load_tool

from pretrain.weights import download as weights_download
from pretrain.weights.download import GROUPS, DownloadError, check, download, names_of, path_of
from pretrain.weights.published import PUBLISHED_FILES

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
NAME = 'addp-vit-base-16'
PLACE = Path('exp/release/addp-vit-base-16.pth')
COMMIT = 'abc' + 37 * '0'


class Server(ThreadingHTTPServer):
    """Serves ``files`` as the hub does; the first ``cuts`` downloads end after ``cut_at`` bytes."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts, self.cut_at = 0, 4000
        self.ranges: list[str | None] = []  # asked for, of each download

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def offer_on_hub(self, content: bytes, folder: str = 'weights/') -> None:
        """Imitates the hub's description of a model repository that holds the released file."""
        repo, file = PUBLISHED_FILES[NAME].hub_repo, f'{folder}{PLACE.name}'
        lfs = dict(sha256=hashlib.sha256(content).hexdigest(), size=len(content), pointerSize=1)
        info = dict(
            id=repo,
            sha=COMMIT,
            siblings=[dict(rfilename='README.md', size=1), dict(rfilename=file, size=len(content), lfs=lfs)],
        )
        self.files[f'/api/models/{repo}?blobs=true'] = json.dumps(info).encode()
        self.files[f'/{repo}/resolve/{COMMIT}/{file}'] = content


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        is_file, first = 'resolve' in self.path, 0
        if is_file and with_body:
            asked = self.headers.get('Range')
            self.server.ranges.append(asked)
            first = int((asked or 'bytes=0-').removeprefix('bytes=').partition('-')[0])
        self.send_response(206 if first else 200)
        if first:
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        if is_file:
            self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('Content-Length', str(len(content) - first))
        self.end_headers()
        end = len(content)
        if self.server.cuts and is_file and with_body:
            self.server.cuts -= 1
            end = min(end, first + self.server.cut_at)
        if with_body:
            self.wfile.write(content[first:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
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


def test_a_released_file_is_found_on_the_hub_resumed_loaded_and_put_in_its_place(
    server: Server, tmp_path: Path, released: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE', 1000)  # what a cut connection may lose
    server.offer_on_hub(released)
    server.cuts = 1
    found = download(NAME, tmp_path, quiet=True)
    assert 'tensors load' in found and 'no tokenizer' in found
    assert (tmp_path / PLACE).read_bytes() == released
    assert len(server.ranges) == 2 and str(server.ranges[1]).startswith('bytes=4000-')
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
    monkeypatch.setattr(weights_download, '_fetch_from_drive', unreachable)
    assert load_tool('download_weights').main(['--root', str(tmp_path)]) == 1
    text = capsys.readouterr().err
    for name in GROUPS['all']:
        assert str(path_of(name, tmp_path)) in text
    for published in PUBLISHED_FILES.values():
        assert published.page in text


def unreachable(*_: object) -> None:
    raise DownloadError('unreachable')


def test_a_file_from_google_drive_is_checked_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(content: bytes) -> Callable[..., str]:
        def download(**options: Any) -> str:
            asked.append(options)
            Path(options['output']).write_bytes(content)
            return options['output']

        return download

    target = tmp_path / path_of('vqgan_jax_strongaug')
    monkeypatch.setattr(weights_download.gdown, 'download', fetch(b'<html>too many downloads</html>'))
    with pytest.raises(DownloadError, match='refused and removed'):
        download('vqgan_jax_strongaug', tmp_path)
    assert list(target.parent.iterdir()) == []
    shapes = json.loads((GOLDEN / 'vqgan_jax_strongaug.keys.json').read_text())
    torch.save({name: torch.empty(shape, device='meta') for name, shape in shapes.items()}, tmp_path / 'vqgan')
    monkeypatch.setattr(weights_download.gdown, 'download', fetch((tmp_path / 'vqgan').read_bytes()))
    assert 'tensors load' in download('vqgan_jax_strongaug', tmp_path)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert asked[-1]['id'] == PUBLISHED_FILES['vqgan_jax_strongaug'].drive_id and asked[-1]['resume']


def test_inceptions_weights_have_the_checksum_in_their_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files['/inception.pth'] = b'other weights'
    monkeypatch.setattr(weights_download, 'URL_INCEPTION_V3', f'{server.url}/inception.pth')
    with pytest.raises(DownloadError, match='invalid hash value'):
        download('inception', tmp_path, quiet=True)
    assert not (tmp_path / path_of('inception')).exists()


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
