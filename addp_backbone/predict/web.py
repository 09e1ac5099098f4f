"""Fetches an image from the web: http and https only, within limits on size and time, no redirects inwards.

Nothing is fetched unless the user allows it (``--allow-urls``). A redirect may lead to the same server or to a public
address, so that a page on the web cannot make this machine read from its own network. The check resolves the name once,
before the connection does: it is a guard against mistakes and simple tricks, no firewall.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

MAX_BYTES_VARIABLE, DEFAULT_MAX_BYTES = 'ADDP_MAX_DOWNLOAD_BYTES', 64 << 20
WAIT_S, TOTAL_S = 20.0, 120.0  # for one answer of the server, and for the whole image
MAX_REDIRECTS = 5
_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*://')
_CHUNK_BYTES = 1 << 16
_PORTS = {'http': 80, 'https': 443}
_ASCII = ''.join(map(chr, range(0x21, 0x7F)))


class DownloadError(OSError):
    """An image could not be fetched, or fetching it is not allowed."""


class URLsNotAllowedError(ValueError):
    """A source is a URL, and nobody said that URLs may be fetched."""

    def __init__(self, url: str) -> None:
        super().__init__(f'{url}: is a URL; --allow-urls (in Python allow_urls=True) lets it be fetched')


def is_url(source: str) -> bool:
    """Whether a source is a URL of any scheme."""
    return _SCHEME.match(source) is not None


def check_url(url: str) -> None:
    """Checks a URL before anything is fetched.

    Args:
        url: As the user gave it.

    Raises:
        DownloadError: If it is not of http or https, has no host, or contains a user name.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read only when it is asked for
    except ValueError as error:
        raise DownloadError(f'is no URL: {error}') from error
    if parts.scheme.lower() not in _PORTS:
        raise DownloadError(f'has the scheme {parts.scheme}, wanted http or https')
    if not parts.hostname or re.search(r'[\x00-\x20\x7f]', url):
        raise DownloadError('is no URL: wanted http(s)://HOST/PATH without blanks')
    if parts.username is not None:
        raise DownloadError('contains a user name or password, which results would repeat: fetch the file yourself')


def max_bytes() -> int:
    """The most bytes that are read from a server; the environment variable ``ADDP_MAX_DOWNLOAD_BYTES`` sets it.

    Raises:
        ValueError: If the variable is no whole number over 0.
    """
    text = os.environ.get(MAX_BYTES_VARIABLE) or str(DEFAULT_MAX_BYTES)
    if not text.isdecimal() or not int(text):
        raise ValueError(f'the environment variable {MAX_BYTES_VARIABLE} is {text!r}, wanted a whole number over 0')
    return int(text)


def fetch(url: str, wait_s: float = WAIT_S, total_s: float = TOTAL_S) -> bytes:
    """Reads what a URL leads to into memory.

    Args:
        url: Of http or https.
        wait_s: Longest wait for an answer, in seconds.
        total_s: Longest time for all of it, in seconds.

    Returns:
        The content, whole.

    Raises:
        DownloadError: If the server refuses, is too slow, sends less than it declares or more than :func:`max_bytes`,
            or redirects to another scheme or to a private address.
        ValueError: If the limit is no number.
    """
    limit, deadline = max_bytes(), time.monotonic() + total_s
    check_url(url)
    request = Request(_in_ascii(url), headers={'User-Agent': 'addp-transfer'})
    try:
        with _opener().open(request, timeout=wait_s) as response:
            return _read(response, limit, deadline, total_s)
    except DownloadError:
        raise
    except HTTPError as error:
        raise DownloadError(f'the server answered {error.code} {error.reason}') from error
    except TimeoutError as error:
        raise DownloadError(f'no answer within {wait_s:g} s') from error
    except URLError as error:
        reason = f'no answer within {wait_s:g} s' if isinstance(error.reason, TimeoutError) else str(error.reason)
        raise DownloadError(f'could not be fetched: {reason}') from error
    except (HTTPException, OSError, ValueError) as error:
        raise DownloadError(f'could not be fetched: {type(error).__name__}: {error}') from error


def _in_ascii(url: str) -> str:
    """A URL as it is sent: what a browser shows as letters beyond ASCII is UTF-8 in percent signs."""
    parts = urlsplit(url)
    return parts._replace(path=quote(parts.path, safe=_ASCII), query=quote(parts.query, safe=_ASCII)).geturl()


def _read(response: Any, limit: int, deadline: float, total_s: float) -> bytes:
    declared = response.headers.get('Content-Length')
    expected = int(declared) if declared and declared.isdecimal() else None
    advice = f'{MAX_BYTES_VARIABLE} sets another limit'
    if expected is not None and expected > limit:
        raise DownloadError(f'has {expected} bytes, more than the limit of {limit}; {advice}')
    content = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        content += chunk
        if len(content) > limit:
            raise DownloadError(f'has more bytes than the limit of {limit}; {advice}')
        if time.monotonic() > deadline:
            raise DownloadError(f'took longer than {total_s:g} s; {len(content)} bytes had come')
    if expected is not None and len(content) < expected:
        raise DownloadError(f'ended after {len(content)} of {expected} bytes')
    return bytes(content)


class _CheckedRedirects(HTTPRedirectHandler):
    """Follows a redirect only where :func:`check_redirect` lets it."""

    max_redirections = MAX_REDIRECTS

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        target = headers.get('location') or headers.get('uri')
        if target:
            check_redirect(req.full_url, urljoin(req.full_url, target))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def check_redirect(url: str, target: str) -> None:
    """Checks where a server wants to lead.

    Args:
        url: What was asked for.
        target: The absolute URL of the redirect.

    Raises:
        DownloadError: If the target is no URL of http or https, leaves https for http, or is a private address of
            another server.
    """
    check_url(target)
    before, after = urlsplit(url), urlsplit(target)
    if before.scheme == 'https' and after.scheme != 'https':
        raise DownloadError(f'is redirected from https to {after.scheme}')
    if _server(before) != _server(after) and _is_private(after.hostname or ''):
        raise DownloadError(f'is redirected to the private address {after.hostname}')


def _server(parts: SplitResult) -> tuple[str, int]:
    return (parts.hostname or '').lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _is_private(host: str) -> bool:
    """Whether a name leads to an address that is not public; no where it leads nowhere."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(str(entry[4][0]).partition('%')[0]).is_global for entry in found)


def _opener() -> OpenerDirector:
    """An opener without urllib's handlers for files, FTP and inline data."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
        _CheckedRedirects(),
    ):
        opener.add_handler(handler)
    return opener
