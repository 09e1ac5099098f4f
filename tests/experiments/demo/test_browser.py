"""The demo in a real browser: images in, results and errors visible, and no request to another machine."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import pytest
from generator_files import write_generator_files
from PIL import Image
from small_exports import save, write_detector, write_segmentor

from addp_backbone.predict.predictor import Predictor
from experiments.demo.generator import ImageGenerator
from experiments.demo.models import GENERATES, PREDICTS, Loaded, find_models
from experiments.demo.serve import serve

REASON = 'the demo is tested with {} (pip install gradio playwright, in an environment of its own)'
WAIT_MS = 60_000


class Demo(NamedTuple):
    """A served page in a browser, and what either asked other machines for."""

    page: Any
    url: str
    folder: Path
    requests: list[str]
    connections: list[Any]


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    pytest.importorskip('gradio', reason=REASON.format('gradio'))
    playwright = pytest.importorskip('playwright.sync_api', reason=REASON.format('playwright'))
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium on this machine')
    folder = tmp_path_factory.mktemp('demo')
    pairs = [(config, save(config)) for config in (write_detector(folder), write_segmentor(folder))]
    addp = write_generator_files(folder)
    models = find_models([], [*pairs, (addp.config, addp.checkpoint)])
    requests: list[str] = []
    connections: list[Any] = []
    connect = socket.socket.connect
    with pytest.MonkeyPatch.context() as patch, playwright.sync_playwright() as driver:
        patch.setattr(
            socket.socket, 'connect', lambda self, address: connections.append(address) or connect(self, address)
        )
        predictors = Loaded(models, PREDICTS, partial(Predictor, device='cpu'))
        generators = Loaded(models, GENERATES, partial(ImageGenerator.load, device='cpu'))
        with serve(predictors, generators) as address:
            assert address.local
            browser = driver.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
            page = browser.new_page(viewport=dict(width=1400, height=1000))
            page.set_default_timeout(WAIT_MS)
            page.on('request', lambda request: requests.append(request.url))
            page.goto(address.url)
            yield Demo(page, address.url, folder, requests, connections)
            browser.close()


@pytest.fixture
def photograph(demo: Demo) -> Path:
    """48 x 96 px as stored, 96 x 48 as shown."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 48, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(demo.folder / 'photo.png', exif=exif)
    return demo.folder / 'photo.png'


def upload(page: Any, component: str, file: Path) -> None:
    clear = page.locator(f'{component} button[aria-label="Clear"]')
    if clear.count():
        clear.click()
    page.locator(f'{component} input[type=file]').set_input_files(file)


def test_an_image_is_predicted_and_a_click_shows_similar_patches(demo: Demo, photograph: Path) -> None:
    page = demo.page
    upload(page, '#upload', photograph)
    page.wait_for_selector('#overlay img')
    page.wait_for_selector('text=/96 x 48 px, [1-9][0-9]* objects/')
    assert page.locator('#table').inner_text().count('0.') >= 1
    page.wait_for_selector('#components img')
    width, height = page.eval_on_selector('#image img', 'image => [image.naturalWidth, image.naturalHeight]')
    assert width == 2 * height, 'turned as a viewer shows it'
    assert page.locator('#similarity img').count() == 0
    page.locator('#image img').click(position=dict(x=20, y=20))
    page.wait_for_selector('#similarity img')


def test_another_model_is_chosen(demo: Demo, photograph: Path) -> None:
    page = demo.page
    upload(page, '#upload', photograph)
    page.locator('#model input').click()
    page.get_by_role('option', name='segmentor').click()
    page.wait_for_selector('text=/96 x 48 px, [1-3] classes/')
    assert page.locator('#table').inner_text().count('0.') >= 1
    page.locator('#model input').click()
    page.get_by_role('option', name='detector').click()
    page.wait_for_selector('text=/96 x 48 px, [1-9][0-9]* objects/')


def test_an_error_is_shown_for_what_is_no_image_and_no_older_result_stays(demo: Demo, photograph: Path) -> None:
    page = demo.page
    upload(page, '#upload', photograph)
    page.wait_for_selector('#overlay img')
    notes = demo.folder / 'notes.png'
    notes.write_text('no image', encoding='utf-8')
    upload(page, '#upload', notes)
    page.wait_for_selector('.status >> text=notes.png: is not an image')
    page.wait_for_selector('#overlay img', state='detached')
    page.wait_for_selector('#image img', state='detached')


def test_images_are_generated_step_by_step(demo: Demo) -> None:
    page = demo.page
    page.get_by_role('tab', name='Generate').click()
    page.locator('#generate').click()
    page.wait_for_selector('text=step 20 of 20, 0 tokens open')
    assert page.locator('#generated img').count() == 1


def test_what_the_brush_painted_is_drawn_anew(demo: Demo, photograph: Path) -> None:
    page = demo.page
    page.get_by_role('tab', name='Inpaint').click()
    upload(page, '#upload_inpaint', photograph)
    page.wait_for_selector('#editor canvas')
    page.wait_for_timeout(2000)  # the editor has no sign of having drawn its image
    page.locator('#inpaint').click()
    page.wait_for_selector('text=nothing is painted: brush over')
    box = page.locator('#editor canvas').first.bounding_box()
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.move(x - 30, y - 30)
    page.mouse.down()
    page.mouse.move(x - 20, y - 20, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator('#inpaint').click()
    page.wait_for_selector('text=/[1-4] of 16 tokens drawn anew/')
    assert page.locator('#inpainted img').count() == 1


def test_neither_page_nor_server_asked_another_machine(demo: Demo) -> None:
    assert len(demo.requests) > 20
    assert [url for url in demo.requests if not url.startswith((demo.url, f'blob:{demo.url}', 'data:'))] == []
    hosts = {address[0] for address in demo.connections if isinstance(address, tuple)}
    assert hosts <= {'127.0.0.1', '::1', 'localhost'}, hosts


def test_the_browser_is_told_to_load_nothing_from_elsewhere_and_other_host_names_are_refused(demo: Demo) -> None:
    with urlopen(demo.url) as answer:
        assert "default-src 'self'" in answer.headers['content-security-policy']
    with pytest.raises(OSError, match='400'):
        urlopen(Request(demo.url, headers={'Host': 'elsewhere.example'}))
