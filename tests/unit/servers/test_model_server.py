from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from trimodal.errors import SettingsError
from trimodal.servers.model_server import _configuration, _environment, _free_port
from trimodal.settings import MIB, Settings

SETTINGS = Settings()


def properties(settings, workers=2, port=21000):
    lines = _configuration(settings, workers, port).splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
    return dict(pairs)


@pytest.fixture
def taken():
    """Ports on which this process listens."""
    sockets = []

    def listen(port=0):
        sockets.append(socket.create_server(("127.0.0.1", port)))
        return sockets[-1].getsockname()[1]

    yield listen
    for item in sockets:
        item.close()


def test_the_model_server_listens_inside_the_container_only():
    found = properties(SETTINGS, port=21000)

    assert found["inference_address"] == found["management_address"] == "http://127.0.0.1:21000"


def test_our_handler_gets_the_bytes_as_they_came():
    found = properties(SETTINGS)

    assert found["default_service_handler"] == "trimodal.servers.mms:handle"
    assert found["decode_input_request"] == "false"


def test_the_number_of_workers_is_written():
    assert properties(SETTINGS, workers=7)["default_workers_per_model"] == "7"


@pytest.mark.parametrize(("request_timeout", "startup_timeout", "written"), [(60, 600, "600"), (900, 30, "900")])
def test_the_time_limit_covers_loading_and_answering(request_timeout, startup_timeout, written):
    settings = replace(SETTINGS, request_timeout=request_timeout, startup_timeout=startup_timeout)

    assert properties(settings)["default_response_timeout_seconds"] == written


def test_the_front_refuses_large_bodies_first():
    found = properties(replace(SETTINGS, max_payload=3 * MIB))

    assert int(found["max_request_size"]) > 3 * MIB
    assert int(found["max_response_size"]) >= 3 * MIB


def test_a_port_within_the_range_that_is_allowed(taken):
    port = taken()
    first = min(port, 32760)

    for _ in range(20):
        assert first <= _free_port((first, first + 5)) <= first + 5


def test_a_port_that_is_taken_is_passed_over(taken):
    first = next(port for port in range(20100, 30000) if _is_free(port) and _is_free(port + 1))
    taken(first)

    assert {_free_port((first, first + 1)) for _ in range(10)} == {first + 1}


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_without_a_range_any_port_that_the_model_server_can_read():
    assert 20000 <= _free_port(None) <= 32766


def test_no_free_port_is_an_error(taken):
    first = next(port for port in range(20200, 30000) if _is_free(port) and _is_free(port + 1))
    taken(first)
    taken(first + 1)

    with pytest.raises(SettingsError, match=f"SAGEMAKER_SAFE_PORT_RANGE={first}-{first + 1} holds no free port"):
        _free_port((first, first + 1))


def test_a_range_beyond_what_the_model_server_can_read_is_an_error():
    with pytest.raises(SettingsError, match="SAGEMAKER_SAFE_PORT_RANGE=40000-40010 holds no free port up to 32766"):
        _free_port((40000, 40010))


def test_workers_find_the_package_and_the_place_to_report(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("SCORE_FORMAT", "number")

    environment = _environment(SETTINGS, tmp_path)

    code, *rest = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(code) / "inference.py").is_file()
    assert rest == ["/somewhere"]
    assert environment["TRIMODAL_RUN_DIR"] == str(tmp_path)
    assert environment["SCORE_FORMAT"] == "number"


@pytest.mark.parametrize(("level", "written"), [("DEBUG", "info"), ("INFO", "warn"), ("ERROR", "warn")])
def test_the_model_server_is_quieter_than_we_are(tmp_path, level, written):
    assert _environment(replace(SETTINGS, log_level=level), tmp_path)["MMS_LOG_LEVEL"] == written
