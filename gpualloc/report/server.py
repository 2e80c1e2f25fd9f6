"""Serves one page on the loopback interface: the report as it is now, at an address with a random token.

No file is ever served: two addresses are answered from memory and all else is 404, so that no path leads anywhere. A request must name
the loopback address as its host, which keeps out pages of other sites whose names point here (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import html
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.render import content_policy, encode, render

HOST = "127.0.0.1"
_TOKEN_BYTES = 24
_MIN_AGE_S = 1.0  # a page that young is sent again rather than made again
_SOCKET_TIMEOUT_S = 10.0  # a client that says nothing must not hold a thread
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # That of the page's head, for every answer, and what cannot be said there.
    "Content-Security-Policy": f"{content_policy(is_live=True)}; frame-ancestors 'none'",
}


class ReportServer:
    """Bound as soon as it is made; answers while `serve_forever` runs.

    Args:
        make: reads the inputs anew.
        language: of the page.
        port: 0 for a free one.

    Raises:
        UsageError: the port cannot be had.
    """

    def __init__(self, make: Callable[[], ReportInputs], *, language: str, port: int = 0) -> None:
        self._make, self._language = make, language
        self._token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._lock = threading.Lock()
        self._page, self._state, self._made_at_s = b"", "", -_MIN_AGE_S
        server = self

        class Handler(_Handler):
            report = server

        try:
            self._http = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise UsageError(f"--port {port} cannot be had on {HOST}: {error.strerror}; choose another, or 0 for a free one") from error
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]

    def __enter__(self) -> ReportServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.server_close()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve_forever(self) -> None:
        """Until an exception, such as that of a signal, ends it, or `stop` is called."""
        self._http.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """From another thread than the one that serves."""
        self._http.shutdown()

    def allows_host(self, host: str | None) -> bool:
        return host in (f"{HOST}:{self.port}", f"localhost:{self.port}")

    def place_of(self, path: str) -> str | None:
        """What is asked for, "" or "state"; None without the token."""
        begin, _, place = path.removeprefix("/").partition("/")
        has_token = secrets.compare_digest(begin.encode(errors="replace"), self._token.encode())
        return place if has_token and path.startswith("/") and "/" in path[1:] else None

    def page(self) -> tuple[bytes, str]:
        """(the page, a digest that changes with what it shows), made again where it is a second old."""
        with self._lock:
            if time.monotonic() - self._made_at_s >= _MIN_AGE_S:
                try:
                    inputs = self._make()
                    # When the report was made is no news.
                    shown = repr((inputs.studies, inputs.problems, None if inputs.watched is None else len(inputs.watched.samples)))
                    state = hashlib.sha256(shown.encode(errors="backslashreplace")).hexdigest()[:16]
                    if state != self._state:
                        self._page, self._state = encode(render(inputs, language=self._language, is_live=True)), state
                except GpuallocError as error:
                    self._page, self._state = _error_page(str(error)), "error"
                self._made_at_s = time.monotonic()
            return self._page, self._state


def _error_page(message: str) -> bytes:
    return encode(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>gpualloc</title><p>{html.escape(message)}</p></html>')


class _Handler(BaseHTTPRequestHandler):
    report: ReportServer
    timeout = _SOCKET_TIMEOUT_S
    server_version, sys_version = "gpualloc", ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        place = self.report.place_of(self.path) if self.report.allows_host(self.headers.get("Host")) else None
        if place == "":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.report.page()[0], with_body)
        elif place == "state":
            self._send(HTTPStatus.OK, "text/plain; charset=utf-8", self.report.page()[1].encode(), with_body)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n", with_body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: addresses hold the token."""
