"""Where the page is served is tried before Gradio starts."""

from __future__ import annotations

import runpy
import socket

import pytest
from small_configs import REPOSITORY

from experiments.demo.serve import LOCAL_HOST, check_address


def test_a_taken_port_and_another_machines_address_are_refused() -> None:
    with socket.create_server((LOCAL_HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf'cannot be served on host 127\.0\.0\.1, port {port}: .*in use'):
            check_address(LOCAL_HOST, port)
    with pytest.raises(OSError, match=r'cannot be served on host 192\.0\.2\.1: '):
        check_address('192.0.2.1', None)
    check_address(LOCAL_HOST, None)
    check_address('localhost', port)


@pytest.mark.parametrize('port', ['0', '65536', '-1'])
def test_a_port_that_does_not_exist_is_an_error_of_the_command(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    parse = runpy.run_path(str(REPOSITORY / 'tools/demo.py'))['parse_args']
    with pytest.raises(SystemExit):
        parse(['work_dir', '--port', port])
    assert '--port must be 1 to 65535' in capsys.readouterr().err
