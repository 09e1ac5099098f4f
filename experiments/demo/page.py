"""The demo's page: tabs for predictions with features, generation and inpainting. Needs Gradio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, Predictor
from experiments.demo.models import Loaded
from experiments.demo.views import (
    BOX,
    TABLE_COLUMNS,
    compute_features,
    draw_components,
    draw_similarity,
    fit_to_screen,
    predict,
    read_upload,
    to_image,
)
from pretrain.generation.sampling import Sampling

if TYPE_CHECKING:
    from experiments.demo.generator import ImageGenerator

TITLE = 'ADDP transfer toolkit'
ONE_AT_A_TIME: dict[str, Any] = dict(concurrency_limit=1, concurrency_id='model')  # models are not shared by threads
KEEP_FILES_S = 3600  # uploads and results are deleted an hour after they were made
MAX_IMAGES, MAX_STEPS = 16, 64
NO_TABLE: dict[str, Any] = dict(headers=list(TABLE_COLUMNS['objects']), data=[])
CSS = """
footer {display: none !important}
.status p {min-height: 1.4em; margin: 0}
.caption p {margin: 0; font-size: 0.9em; opacity: 0.75}
#table {font-size: 0.85em}
.pixels img {image-rendering: pixelated}
"""


def build_page(predictors: Loaded[Predictor], generators: Loaded[ImageGenerator]) -> gr.Blocks:
    """Builds the page.

    Args:
        predictors: Detectors, segmentors and classifiers.
        generators: ADDP models.

    Returns:
        The page; a tab for what there is no model for is left out.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEEP_FILES_S, KEEP_FILES_S)) as page:
        gr.Markdown(f'# {TITLE}')
        with gr.Tabs():
            if predictors.names:
                with gr.Tab('Predict'):
                    _PredictTab(predictors)
            if generators.names:
                with gr.Tab('Generate'):
                    _GenerateTab(generators)
                with gr.Tab('Inpaint'):
                    _InpaintTab(generators)
    return page


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Shows errors that say what is wrong (ValueError, OSError) on the page, as the commands print them."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def _image(label: str, name: str, pixels: bool = False) -> gr.Image:
    """An image under its label; ``pixels`` shows pixels as squares."""
    with gr.Column(min_width=200):
        gr.Markdown(label, elem_classes=['caption'])
        return gr.Image(
            label=label,
            show_label=False,
            elem_id=name,
            elem_classes=['pixels'] if pixels else None,
            interactive=False,
            format='png',
            buttons=['download'],
        )


def _status() -> gr.Markdown:
    return gr.Markdown('', elem_classes=['status'])


class _PredictTab:
    """An image goes in; prediction, table, principal components and similarity come out."""

    def __init__(self, predictors: Loaded[Predictor]) -> None:
        self.predictors = predictors
        names = predictors.names
        tokens, shown = (gr.State(time_to_live=KEEP_FILES_S) for _ in range(2))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(names, value=names[0], label='Model', elem_id='model')
                upload = gr.File(label='Image', elem_id='upload', height=130)
                threshold = gr.Slider(0, 1, DEFAULT_SCORE_THR, step=0.05, label='Least score of a detection')
                status = _status()
                table = gr.Dataframe(NO_TABLE, label='Found', interactive=False, elem_id='table', max_height=360)
            with gr.Column(scale=3):
                overlay = _image('Prediction', 'overlay')
                with gr.Row():
                    image = _image('Image: click on it for similar patches', 'image')
                    similarity = _image('Cosine similarity to the clicked patch', 'similarity')
                    components = _image('Features: three principal components', 'components')
        inputs, outputs = [model, upload, threshold], [overlay, table, status]
        features = [image, components, similarity, tokens, shown]
        for event in (upload.change, model.change):
            done = event(self.predict, inputs, outputs, **ONE_AT_A_TIME)
            done.then(self.features, [model, upload], features, show_progress_on=[image, components], **ONE_AT_A_TIME)
        threshold.release(self.predict, inputs, outputs, **ONE_AT_A_TIME)
        for clicked in (image, components, similarity):
            clicked.select(self.similar, [tokens, shown], [similarity], show_progress='minimal')

    def predict(self, name: str, path: str | None, threshold: float) -> tuple[Any, ...]:
        """Overlay, table and status; nothing without an image or with one that cannot be used."""
        if path is None:
            return None, NO_TABLE, ''
        try:
            pixels = read_upload(path)
            predictor = self.predictors.get(name)
            overlay, table = predict(predictor, pixels, threshold)
        except (ValueError, OSError) as error:
            gr.Warning(str(error), title='Error')
            return None, NO_TABLE, f'**Error:** {error}'
        height, width = pixels.shape[:2]
        found = f'{len(table.rows)} {"objects" if BOX in table.columns else "classes"}'
        status = f'{width} x {height} px, {found}; checkpoint `{predictor.checkpoint.name}`'
        return overlay, dict(headers=table.columns, data=table.rows), status

    def features(self, name: str, path: str | None) -> tuple[Any, ...]:
        """Image, components, no similarity yet, tokens and the image that is clicked on."""
        nothing = (None,) * 5
        if path is None:
            return nothing
        try:
            pixels = read_upload(path)
        except ValueError:  # shown by the prediction
            return nothing
        shown = fit_to_screen(to_image(pixels))
        try:
            tokens = compute_features(self.predictors.get(name), pixels)
        except ValueError:  # a model without maps
            return shown, None, None, None, shown
        return shown, draw_components(tokens, shown.size), None, tokens, shown

    def similar(self, tokens: Any, shown: Image.Image | None, event: gr.SelectData) -> Image.Image | None:
        """The similarity map for a click."""
        if tokens is None or shown is None:
            return None
        x, y = event.index
        return draw_similarity(tokens, shown, x, y)


def _sampling_controls() -> tuple[gr.Number, gr.Slider, gr.Slider]:
    seed = gr.Number(0, label='Seed', precision=0)
    steps = gr.Slider(1, MAX_STEPS, 20, step=1, label='Steps')
    temperature = gr.Slider(0, 20, 6, step=0.5, label='Temperature')
    return seed, steps, temperature


class _GenerateTab:
    """Images as they emerge."""

    def __init__(self, generators: Loaded[ImageGenerator]) -> None:
        self.generators = generators
        names = generators.names
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(names, value=names[0], label='ADDP', elem_id='addp')
                number = gr.Slider(1, MAX_IMAGES, 9, step=1, label='Images')
                seed, steps, temperature = _sampling_controls()
                button = gr.Button('Generate', variant='primary', elem_id='generate')
                stop = gr.Button('Stop')
                status = _status()
            with gr.Column(scale=3):
                sheet = _image('Images', 'generated', pixels=True)
        running = button.click(
            self.generate, [model, number, seed, steps, temperature], [sheet, status], **ONE_AT_A_TIME
        )
        stop.click(None, cancels=[running])

    def generate(
        self, name: str, number: int, seed: int, steps: int, temperature: float
    ) -> Iterator[tuple[Image.Image, str]]:
        """Images and status after each step."""
        with shown_errors():
            sampling = Sampling(int(steps), temperature=float(temperature))
            for done in self.generators.get(name).generate(int(number), int(seed), sampling):
                yield done.sheet, f'step {done.step} of {sampling.steps}, {done.num_masked} tokens open'


class _InpaintTab:
    """A brush, and what ADDP puts there."""

    def __init__(self, generators: Loaded[ImageGenerator]) -> None:
        self.generators = generators
        names = generators.names
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(names, value=names[0], label='ADDP', elem_id='addp_inpaint')
                upload = gr.File(label='Image: its centre square is used', elem_id='upload_inpaint', height=130)
                number = gr.Slider(1, 8, 4, step=1, label='Results')
                seed, steps, temperature = _sampling_controls()
                paste = gr.Checkbox(False, label="Keep the image's own pixels where nothing is painted")
                button = gr.Button('Inpaint', variant='primary', elem_id='inpaint')
                status = _status()
            with gr.Column(scale=3):
                editor = gr.ImageEditor(
                    label='Paint over what is to be drawn anew',
                    elem_id='editor',
                    type='pil',
                    image_mode='RGBA',
                    format='png',
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=48, colors=['#ff3b6b'], default_color='#ff3b6b', color_mode='fixed'),
                    buttons=[],
                    height=600,
                )
                results = _image('Before, mask, results', 'inpainted', pixels=True)
        for event in (upload.change, model.change):
            event(self.show, [model, upload], [editor, status, results], **ONE_AT_A_TIME)
        inputs = [model, upload, editor, number, seed, steps, temperature, paste]
        button.click(self.inpaint, inputs, [results, status], **ONE_AT_A_TIME)

    def show(self, name: str, path: str | None) -> tuple[Any, ...]:
        """The image to paint on."""
        if path is None:
            return None, '', None
        try:
            image = self.generators.get(name).fit_for_brush(to_image(read_upload(path)))
        except (ValueError, OSError) as error:
            gr.Warning(str(error), title='Error')
            return None, f'**Error:** {error}', None
        return dict(background=image, layers=[], composite=image), '', None

    def inpaint(
        self,
        name: str,
        path: str | None,
        painted: dict[str, Any] | None,
        number: int,
        seed: int,
        steps: int,
        temperature: float,
        paste: bool,
    ) -> tuple[Image.Image, str]:
        """Results and status."""
        with shown_errors():
            if path is None or not painted or painted['background'] is None:
                raise ValueError('there is no image yet: drop one, and paint over a part of it')
            model = self.generators.get(name)
            tokens = model.brushed_tokens(painted['layers'])
            sampling = Sampling(int(steps), temperature=float(temperature))
            image = to_image(read_upload(path))
            sheet = model.inpaint(image, tokens, int(number), int(seed), sampling, bool(paste))
            return sheet, f'{int(tokens.sum())} of {model.num_tokens} tokens drawn anew'
