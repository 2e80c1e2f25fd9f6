"""`--serve`: one page on loopback, behind a token; no other path leads anywhere."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpualloc.errors import StoreError, UsageError
from gpualloc.report import ReportInputs
from gpualloc.report.server import HOST, ReportServer
from tests.findings.studied_runs import study_run
from tests.report.inputs import inputs_of


class Source:
    """Inputs that a test changes."""

    def __init__(self) -> None:
        self.inputs = inputs_of(study_run()[:5])
        self.error: StoreError | None = None

    def __call__(self) -> ReportInputs:
        if self.error is not None:
            raise self.error
        return self.inputs


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportServer]:
    monkeypatch.setattr("gpualloc.report.server._MIN_AGE_S", 0.0)
    with ReportServer(source, language="en") as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.stop()
        thread.join(timeout=10)
        assert not thread.is_alive()


def get(server: ReportServer, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"{HOST}:{server.port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def root(server: ReportServer) -> str:
    return server.address.removeprefix(f"http://{HOST}:{server.port}")


def test_the_page_and_its_headers(server: ReportServer) -> None:
    status, headers, body = get(server, root(server))
    assert status == 200
    assert "data-live" in body
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    in_page = policy.removesuffix("; frame-ancestors 'none'").replace("'", "&#39;")
    assert f'content="{in_page}"' in body
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith("; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    assert "unsafe" not in policy
    assert headers["Server"].strip() == "gpualloc"
    assert get(server, root(server), method="HEAD")[2] == ""


def test_only_loopback_is_bound(server: ReportServer) -> None:
    assert server._http.server_address[0] == HOST
    assert len(root(server)) > 32
    assert ReportServer(Source(), language="en").address != server.address


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/state",
        "/{}",
        "/{}/../../etc/passwd",
        "/{}/%2e%2e/%2e%2e/etc/passwd",
        "/{}//etc/passwd",
        "/{}/state/..",
        "/x{}/",
        "/{}/page.css",
    ],
)
def test_no_other_path_leads_anywhere(server: ReportServer, path: str) -> None:
    token = root(server).strip("/")
    assert get(server, path.format(token))[::2] == (404, "not found\n")


def test_other_hosts_and_methods_are_refused(server: ReportServer) -> None:
    assert get(server, root(server), host="evil.example")[0] == 404
    assert get(server, root(server), host=f"localhost:{server.port}")[0] == 200
    assert get(server, root(server), method="POST")[0] == 501


def test_the_state_changes_with_the_measurements_alone(server: ReportServer, source: Source) -> None:
    first = get(server, root(server) + "state")[2]
    source.inputs = replace(source.inputs, made_at_utc="2027-01-01 00:00")
    assert get(server, root(server) + "state")[2] == first
    source.inputs = inputs_of(study_run()[:6])
    assert get(server, root(server) + "state")[2] != first
    source.error = StoreError("the store <b>is</b> locked")
    assert "the store &lt;b&gt;is&lt;/b&gt; locked" in get(server, root(server))[2]
    source.error = None
    assert "data-live" in get(server, root(server))[2]


def test_a_client_that_says_nothing_does_not_hold_the_others(server: ReportServer) -> None:
    with socket.create_connection((HOST, server.port)):
        assert get(server, root(server))[0] == 200


def test_a_taken_port_is_named(server: ReportServer) -> None:
    with pytest.raises(UsageError, match=f"--port {server.port} cannot be had"):
        ReportServer(Source(), language="en", port=server.port)
