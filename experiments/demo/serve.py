"""Serves the demo's page on this machine, without a request to anywhere else."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from addp_backbone.predict.predictor import Predictor
from experiments.demo.models import Loaded

if TYPE_CHECKING:
    from experiments.demo.generator import ImageGenerator

LOCAL_HOST, FIRST_PORT = '127.0.0.1', 7860
MAX_UPLOAD = '256mb'
MAX_SESSIONS = 32  # pages whose features are kept
FONTS = ('system-ui', 'sans-serif')
MONO_FONTS = ('ui-monospace', 'monospace')
# What the browser may load: from this server alone. Gradio's own bundle compiles shaders and starts workers.
CONTENT_POLICY = '; '.join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "object-src 'none'",
        "frame-ancestors 'self'",
    )
)


class Address(NamedTuple):
    """Where the page is.

    Attributes:
        url: For a browser on this machine.
        local: Whether only this machine reaches it.
    """

    url: str
    local: bool


def check_gradio() -> None:
    """Refuses to start without Gradio.

    Raises:
        ValueError: With the command that installs it.
    """
    if importlib.util.find_spec('gradio') is None:
        raise ValueError(
            "the demo needs gradio: pip install gradio (or the project's extra [demo]); it takes Pillow below 13, so "
            'an environment of its own leaves the one for training as it is'
        )


def check_address(host: str, port: int | None) -> None:
    """Refuses to start where the page could not be served; Gradio would wait for a server that does not begin.

    Args:
        host: The interface.
        port: None for any.

    Raises:
        OSError: If the host is none of this machine, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        what = f'host {host}' if port is None else f'host {host}, port {port}'
        raise OSError(f'the page cannot be served on {what}: {error}') from error


@contextmanager
def serve(
    predictors: Loaded[Predictor], generators: Loaded[ImageGenerator], host: str = LOCAL_HOST, port: int | None = None
) -> Iterator[Address]:
    """Serves the page while the context is open.

    Uploads and results lie in a temporary folder that is deleted at the end. A browser is told to load nothing from
    elsewhere; on the local interface requests for another host's name are refused, so that no other page reaches it.

    Args:
        predictors: Detectors, segmentors and classifiers that may be chosen.
        generators: ADDP models that may be chosen.
        host: The interface; the local one by default, '0.0.0.0' for all.
        port: None takes the first free one from 7860.

    Yields:
        The address.

    Raises:
        ValueError: If Gradio is missing.
        OSError: If the port is taken, or the host is none of this machine.
    """
    check_gradio()
    check_address(host, port)
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1')  # read when Gradio is imported
    with tempfile.TemporaryDirectory(prefix='addp-demo-') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        import gradio as gr

        from experiments.demo.page import CSS, build_page

        page = build_page(predictors, generators)
        url = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            state_session_capacity=MAX_SESSIONS,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            theme=gr.themes.Default(primary_hue='teal', font=FONTS, font_mono=MONO_FONTS),
            css=CSS,
            app_kwargs=dict(middleware=_middleware(is_local(host)), docs_url=None, redoc_url=None),
        )[1]
        try:
            yield Address(url, is_local(host))
        finally:
            page.close(verbose=False)


def is_local(host: str) -> bool:
    """Whether a host is this machine's loopback interface."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _middleware(local: bool) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    layers = [Middleware(_ContentPolicy)]
    if local:
        layers.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=['127.0.0.1', 'localhost', '[::1]', '::1']))
    return layers


class _ContentPolicy:
    """ASGI middleware that adds :data:`CONTENT_POLICY` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message.setdefault('headers', []).append((b'content-security-policy', CONTENT_POLICY.encode()))
            await send(message)

        await self.app(scope, receive, send_with_policy)
