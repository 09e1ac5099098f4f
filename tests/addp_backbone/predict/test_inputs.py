"""What a prediction can be asked for: one image in every form, URLs within limits, videos frame by frame."""

from __future__ import annotations

import json
import runpy
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from small_exports import save, write_detector
from web_server import content, redirect, serve, slow

from addp_backbone.predict.detections import Detections
from addp_backbone.predict.inputs import find_inputs
from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.reading import UnreadableImageError, read_source
from addp_backbone.predict.sources import find_images
from addp_backbone.predict.videos import VideoError, read_frames
from addp_backbone.predict.web import DownloadError, check_redirect, fetch

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'predict.py'))['main']
FPS = 10.0


def photograph(seed: int = 0) -> np.ndarray:
    """(72, 96, 3) RGB of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def write_video(path: Path, images: list[np.ndarray]) -> Path:
    """A video of RGB images by a lossless codec; skips the test where OpenCV has none."""
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'FFV1'), FPS, (width, height))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no FFV1')
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


class Closed:
    """A capture that could not be opened."""

    def isOpened(self) -> bool:  # noqa: N802  OpenCV's name
        return False


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    config = write_detector(tmp_path_factory.mktemp('detector'))
    return config, save(config)


def assert_identical(found: Detections, expected: Detections) -> None:
    assert len(expected.scores) > 0
    for name in ('boxes', 'scores', 'labels'):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.masks == expected.masks and found.to_json() == expected.to_json()


def test_an_image_as_path_pillow_array_url_list_and_video_frame_gives_identical_detections(
    detector: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / 'a.png'
    Image.fromarray(photograph()).save(path)
    video = write_video(tmp_path / 'b.mkv', [photograph(1), photograph()])
    predictor = Predictor(*detector, device='cpu', allow_urls=True)
    expected = predictor(path)
    assert isinstance(expected, Detections)
    with serve({'/a.png': content(path.read_bytes())}) as address, Image.open(path) as opened:
        found = predictor([opened, photograph(), f'{address}/a.png'])
    frames = list(predictor.iterate([tmp_path / '*.mkv', tmp_path]))
    assert [(Path(frame.source).name, frame.number, frame.time_s) for frame, _ in frames] == [
        (video.name, 0, 0.0),
        (video.name, 1, 0.1),
        ('a.png', None, None),
    ]
    for prediction in (*found, frames[1][1], frames[2][1]):
        assert isinstance(prediction, Detections)
        assert_identical(prediction, expected)


def test_the_command_takes_images_urls_and_videos_together_and_tells_frames_apart(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / 'a.png', tmp_path / 'out'
    Image.fromarray(photograph()).save(path)
    video = write_video(tmp_path / 'a.mkv', [photograph(1), photograph(2), photograph(), photograph(3)])
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    with serve({'/a.png?size=1': content(path.read_bytes())}) as address:
        url = f'{address}/a.png?size=1'
        options = [
            '--out',
            str(out),
            '--device',
            'cpu',
            '--every',
            '2',
            '--allow-urls',
            '--format',
            'png',
            'coco',
            'csv',
        ]
        sources = [str(path), url, str(video), str(tmp_path / 'broken.mp4')]
        assert MAIN([*map(str, detector), *sources, *options]) == 1
        records = json.loads((out / 'predictions.json').read_text())['images']
        assert [(Path(r['file_name']).name, r.get('frame'), r.get('time_s'), r.get('name')) for r in records] == [
            ('a.png', None, None, 'a'),
            ('a.png?size=1', None, None, 'a_2'),
            ('a.mkv', 0, 0.0, 'a/000000'),
            ('a.mkv', 2, 0.2, 'a/000002'),
            ('broken.mp4', None, None, None),
        ]
        assert records[0]['objects'] == records[1]['objects'] == records[3]['objects'] != records[2]['objects']
        assert 'broken.mp4: cannot be read: cannot be opened as a video' in records[4]['error']
        results = json.loads((out / 'coco_results.json').read_text())
        assert len({one['image_id'] for one in results}) == 4
        assert (out / 'overlays' / 'a' / '000002.png').is_file()
        capsys.readouterr()
        MAIN([*map(str, detector), *sources, *options, '--resume'])
    assert '2 of 3 images (2 of an earlier run)' in capsys.readouterr().out, (
        'frames of videos that are kept are not read'
    )
    again = json.loads((out / 'predictions.json').read_text())['images']
    assert again == records


def test_what_was_predicted_of_a_video_is_not_predicted_again(tmp_path: Path) -> None:
    video = write_video(tmp_path / 'a.mkv', [photograph(seed) for seed in range(4)])
    done = {f'{video}#1': 'a/000001', f'{video}#1.png': 'a.mkv#1'}  # and an image of that name
    inputs = find_inputs([video], done=done)
    assert [frame.name for frame in inputs.frames(done)] == ['a/000000', 'a/000002', 'a/000003']
    assert find_inputs([video], every=3).count() == 2 and find_inputs([video], max_frames=1).count() == 1


def test_frames_are_read_one_at_a_time_with_number_and_time(tmp_path: Path) -> None:
    images = [photograph(seed) for seed in range(7)]
    video = write_video(tmp_path / 'a.mkv', images)
    alive: list[weakref.ref[Any]] = []
    seen = []
    for frame in find_inputs([video], every=2, max_frames=3).frames():
        pixels = frame.read()
        assert np.array_equal(pixels[..., ::-1], images[frame.number or 0])
        alive.append(weakref.ref(pixels))
        seen.append((frame.number, frame.time_s))
        assert sum(reference() is not None for reference in alive) <= 2
    assert seen == [(0, 0.0), (2, 0.2), (4, 0.4)]


def test_a_video_that_is_none_or_a_list_of_others_is_refused(tmp_path: Path) -> None:
    for text, message in ((b'#EXTM3U\nhttp://127.0.0.1/a.ts\n', 'list of other videos'), (b'', 'cannot be opened')):
        (tmp_path / 'a.mp4').write_bytes(text)
        with pytest.raises(VideoError, match=message):
            next(read_frames(str(tmp_path / 'a.mp4')))
        opened: list[str] = []

        def open_video(source: str, *_: Any, opened: list[str] = opened) -> Closed:
            opened.append(source)
            return Closed()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cv2, 'VideoCapture', open_video)
            assert find_inputs([tmp_path / 'a.mp4']).count() == 0
        assert len(opened) == (0 if text else 1), 'a playlist is not even opened to count its frames'
    with pytest.raises(ValueError, match='every is 0, wanted 1 or more'):
        find_inputs([tmp_path / 'a.mp4'], every=0)
    with pytest.raises(ValueError, match='is a video, wanted images'):
        find_images([tmp_path / 'a.mp4'])


def test_a_video_that_ends_early_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('addp_backbone.predict.videos.print_log', lambda message, **_: said.append(message))
    video = write_video(tmp_path / 'a.avi', [photograph(seed) for seed in range(20)])
    content_bytes = video.read_bytes()
    video.write_bytes(content_bytes[: len(content_bytes) // 2])
    frames = list(read_frames(str(video)))
    assert 0 < len(frames) < 15
    assert f'ended after {len(frames)} of the' in said[0]


def test_what_is_no_image_in_memory_is_refused_with_what_was_wanted() -> None:
    for wrong in (None, b'bytes', 3, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), iter([photograph()])):
        with pytest.raises(TypeError, match=r'^got an .*wanted .*\(H, W, 3\) of uint8'):
            read_source(wrong)  # type: ignore[arg-type]
    strip = np.zeros((1, 5000, 3), np.uint8)
    for image in (strip, Image.fromarray(strip)):
        with pytest.raises(UnreadableImageError, match='one side is 5000 times the other'):
            read_source(image)


def test_a_url_may_have_the_letters_that_a_browser_shows(tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / 'a.png')
    with serve({'/Stra%C3%9Fe%20a.png?%C3%A4=1': content((tmp_path / 'a.png').read_bytes())}) as address:
        found = read_source(f'{address}/Straße%20a.png?ä=1', allow_urls=True)
    assert np.array_equal(found[..., ::-1], photograph())


def test_urls_and_streams_are_opened_only_where_that_is_allowed() -> None:
    for source in ('https://example.org/a.jpg', 'rtsp://me:secret@example.org/live', 'file:///etc/passwd'):
        with pytest.raises(ValueError, match='--allow-urls') as caught:
            find_inputs([source])
        assert 'secret' not in str(caught.value)
    with pytest.raises(ValueError, match='allow_urls=True'):
        read_source('https://example.org/a.jpg')
    for source, message in {
        'file:///etc/passwd': 'has the scheme file, wanted http or https',
        'ftp://example.org/a.jpg': 'has the scheme ftp',
        'https://me:secret@example.org/a.jpg': 'contains a user name',
        'https://example.org/a b.jpg': 'without blanks',
        'https://example.org:x/a.jpg': 'is no URL',
        'https://example.org/a.mp4': 'is a video on the web',
    }.items():
        with pytest.raises(ValueError, match=message):
            find_inputs([source], allow_urls=True)
    stream = find_inputs(['rtsp://me:secret@example.org/live', 'camera:0'], allow_urls=True)
    assert list(stream.names.values()) == ['live', 'camera_0'] and stream.count() == 0
    with pytest.raises(ValueError, match=r'rtsp://example\.org/live: a stream cannot be gone on with'):
        find_inputs(['rtsp://me:secret@example.org/live'], done={'a.png': 'a'}, allow_urls=True)


def test_what_a_server_sends_is_limited_in_size_time_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('ADDP_MAX_DOWNLOAD_BYTES', '1000')
    answers = {
        '/good': content(bytes(1000)),
        '/declared': content(bytes(10), declared=5000),
        '/endless': content(bytes(200_000), declared=-1),
        '/short': content(bytes(10), declared=500),
        '/slow': slow(1.0),
        '/to-good': redirect('/good'),
        '/to-file': redirect('file:///etc/passwd'),
        '/to-ftp': redirect('ftp://example.org/a.jpg'),
        '/to-itself': redirect('/to-itself'),
        '/text': content(b'<html>'),
    }
    with serve(answers) as address, serve(answers) as other:
        answers['/to-other'] = redirect(f'{other}/good')
        assert fetch(f'{address}/good') == fetch(f'{address}/to-good') == bytes(1000)
        for path, message in {
            '/declared': 'has 5000 bytes, more than the limit of 1000; ADDP_MAX_DOWNLOAD_BYTES',
            '/endless': 'has more bytes than the limit',
            '/short': 'ended after 10 of 500 bytes',
            '/slow': 'no answer within 0.2 s',
            '/to-file': 'has the scheme file',
            '/to-ftp': 'has the scheme ftp',
            '/to-other': 'is redirected to the private address 127.0.0.1',
            '/to-itself': 'the server answered 302',
            '/nothing': 'the server answered 404',
        }.items():
            with pytest.raises(DownloadError, match=message):
                fetch(f'{address}{path}', wait_s=0.2)
        with pytest.raises(DownloadError, match='took longer than 0 s'):
            fetch(f'{address}/good', total_s=0)
        with pytest.raises(UnreadableImageError, match='/text: is not an image'):
            read_source(f'{address}/text', allow_urls=True)
    with pytest.raises(DownloadError, match='could not be fetched'):
        fetch(f'{address}/good')
    monkeypatch.setenv('ADDP_MAX_DOWNLOAD_BYTES', '1e6')
    with pytest.raises(ValueError, match='wanted a whole number over 0'):
        fetch(f'{address}/good')


def test_a_redirect_may_not_lose_encryption_or_lead_from_outside_into_the_own_network() -> None:
    check_redirect('http://8.8.8.8/a', 'https://9.9.9.9/b')
    for target in ('https://127.0.0.1/b', 'https://10.0.0.1/b', 'https://[::1]/b', 'https://169.254.169.254/b'):
        with pytest.raises(DownloadError, match='private address'):
            check_redirect('https://8.8.8.8/a', target)
    with pytest.raises(DownloadError, match='from https to http'):
        check_redirect('https://8.8.8.8/a', 'http://8.8.8.8/a')
