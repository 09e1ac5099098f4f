"""A web server on this machine for the tests of URLs: files, and answers that a well-behaved client has to refuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def content(data: bytes, declared: int | None = None) -> Answer:
    """Sends data; ``declared`` is the Content-Length, -1 leaves it out."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared != -1:
            handler.send_header('Content-Length', str(len(data) if declared is None else declared))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(target: str) -> Answer:
    """Leads elsewhere."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header('Location', target)
        handler.end_headers()

    return answer


def slow(seconds: float) -> Answer:
    """Answers late."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        handler.send_response(200)
        handler.end_headers()

    return answer


@contextmanager
def serve(answers: dict[str, Answer]) -> Iterator[str]:
    """Serves paths; yields the address, without a slash at its end. Other paths are 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # the client had enough
                answers.get(self.path, lambda handler: handler.send_error(404))(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
