"""``damo-torchrec serve``, as it is run, and its options."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from damo_torchrec.cli import main as cli
from damo_torchrec.cli import serve, serve_settings
from damo_torchrec.cli.output import add_common_options
from serve_cases import body

COMMAND = [sys.executable, "-m", "damo_torchrec", "serve"]


def options_of(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    serve.COMMAND.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_program_serves_reloads_and_ends_in_order(served: Any, tmp_path: Path) -> None:
    _, path, answers = served
    link = tmp_path / "current"
    link.symlink_to(path / "one")
    command = [*COMMAND, link, "--port", "0", "--memory-budget", "64MiB"]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(line for line in lines if "running on" in line).split("running on ")[1].split()[0]
        with httpx.Client(base_url=address) as client:
            for number, name in enumerate(("one", "two")):
                output = client.post("/predict", json=body(3)).json()["output"]
                np.testing.assert_allclose(output, answers[number], atol=1e-5)
                link.unlink()
                link.symlink_to(path / "two")
                process.send_signal(signal.SIGHUP)
                if name == "one":
                    next(line for line in lines if f"serving {path / 'two'}" in line)
        process.send_signal(signal.SIGTERM)
        rest = process.communicate()[1]
    assert "Application shutdown complete" in rest
    assert process.returncode in (0, -signal.SIGTERM)
    assert sorted(p.name for p in path.iterdir()) == ["one", "store", "two"]


def test_the_program_has_its_limits_and_its_token(served: Any, tmp_path: Path) -> None:
    """Connections that stall make room for those that ask, and a token opens what is closed."""
    (tmp_path / "token").write_text("correct horse battery\n")
    options = ["--token-file", tmp_path / "token", "--max-connections", "3", "--client-seconds", "1000"]
    command = [*COMMAND, served[1] / "one", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(line for line in iter(process.stderr.readline, "") if "running on" in line)
        url = httpx.URL(address.split("running on ")[1].split()[0])
        stalled = []
        for _ in range(10):
            stalled.append(socket.create_connection((url.host, url.port), timeout=60))
            stalled[-1].sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert httpx.post(url.join("/predict"), json=body(3)).status_code == 200
        assert all(b"408" in connection.recv(100) for connection in stalled[:7])
        assert httpx.post(url.join("/reload")).status_code == 401
        headers = {"Authorization": "Bearer correct horse battery"}
        assert httpx.post(url.join("/reload"), headers=headers).json()["checkpoint"] == str(served[1] / "one")
        for connection in stalled:
            connection.close()
        process.send_signal(signal.SIGTERM)
        process.communicate()


def test_the_program_says_what_is_wrong(tmp_path: Path, call: Any) -> None:
    status, _, err = call("serve", tmp_path)
    assert status == 2
    assert "is not a checkpoint: damo_torchrec.serving.export makes one to serve" in err


def test_it_says_on_which_port_it_listens(served: Any) -> None:
    command = [*COMMAND, served[1] / "one", "--port", "0", "--json", "-q", "--memory-budget", "64MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        url = f"http://{found['host']}:{found['port']}"
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.communicate()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_wrong_usage(served: Any, call: Any, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = ["--host", host, "--port", port, "--json", "--memory-budget", "64MiB"]
        status, lines, err = call("serve", served[1] / "one", *arguments)
    assert (status, lines) == (2, [])
    assert err == f"damo-torchrec: cannot listen on {host} port {port}: Address already in use\n"


def test_a_host_of_others_is_wrong_usage(served: Any, call: Any) -> None:
    status, lines, err = call("serve", served[1] / "one", "--host", "192.0.2.1", "--memory-budget", "64MiB")
    assert (status, lines) == (2, [])
    assert "cannot listen on 192.0.2.1 port 8000: " in err


def test_a_dry_run_says_what_would_be_served(served: Any, call: Any, document: Any) -> None:
    status, lines, _ = call("serve", served[1] / "one", "--dry-run", "--memory-budget", "64MiB")
    assert status == 0
    assert lines[0].endswith("would be served on 127.0.0.1 port 8000")
    assert lines[1:] == ["  features: ids of user, clicks", "  outputs: output"]
    found = document("serve", served[1] / "one", "--dry-run", "--memory-budget", "64MiB")[1]
    assert found["features"] == {"features": ["user", "clicks"]}
    assert set(found["inputs"]) == {"dense", "features.values", "features.lengths", "features.weights"}


def test_a_server_needs_no_torch(served: Any) -> None:
    program = """
import sys
for name in ("torch", "torchrec", "fbgemm_gpu"):
    sys.modules[name] = None
import damo_torchrec.server.program
from damo_torchrec.cli.main import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, "serve", served[1] / "one", "--dry-run", "--memory-budget", "64MiB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "0"],
        ["--batch-samples", "-1"],
        ["--max-ids", "0"],
        ["--max-connections", "0"],
        ["--client-seconds", "nan"],
        ["--batch-ms", "-1"],
        ["--port", "65536"],
        ["--threads", "0"],
        [],
    ],
)
def test_the_command_line_refuses_what_cannot_be(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *(["export"] if options else []), *options])
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of the file, and long\n")
    by_file = options_of("export", "--token-file", tmp_path / "token", "--allow-host", "Ranker")
    without = options_of("export", "--host", "2001:DB8::7")
    monkeypatch.delenv(serve_settings.TOKEN, raising=False)
    assert serve_settings.access_of(by_file).token == "of the file, and long"
    assert "ranker" in serve_settings.access_of(by_file).hosts
    assert serve_settings.access_of(without).token is None
    assert "[2001:db8::7]" in serve_settings.access_of(without).hosts
    monkeypatch.setenv(serve_settings.TOKEN, "of the environment")
    assert serve_settings.access_of(without).token == "of the environment"
    with pytest.raises(ValueError, match="either --token-file or DAMO_SERVE_TOKEN, got both"):
        serve_settings.access_of(by_file)
    monkeypatch.setenv(serve_settings.TOKEN, "")
    with pytest.raises(ValueError, match="at least 16 characters, got 0"):
        serve_settings.access_of(without)


def test_large_bodies_together_are_no_less_than_one() -> None:
    with pytest.raises(ValueError, match="--max-bodies 1MiB is less than --max-body 8MiB"):
        serve_settings.limits_of(options_of("export", "--max-bodies", "1MiB"))


def test_a_server_everywhere_has_to_be_told_its_names(capsys: pytest.CaptureFixture) -> None:
    access = serve_settings.access_of(options_of("export", "--host", "0.0.0.0"))
    assert "0.0.0.0" not in access.hosts
    assert "--allow-host" in capsys.readouterr().err
