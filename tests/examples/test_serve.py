"""The programs serve.py and train_and_serve.py, as they are run."""

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

import serve
from serve_cases import body

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_program_serves_reloads_and_ends_in_order(served: Any, tmp_path: Path) -> None:
    _, path, answers = served
    link = tmp_path / "current"
    link.symlink_to(path / "one")
    command = [sys.executable, EXAMPLES / "serve.py", link, "--port", "0", "--memory-budget", "64MiB"]
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
    command = [sys.executable, EXAMPLES / "serve.py", served[1] / "one", "--port", "0", *options]
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


@pytest.mark.slow
def test_training_and_serving_at_once_tells_its_story(tmp_path: Path) -> None:
    """The new user's clicks are unknown at first, and known in the end."""
    command = [sys.executable, EXAMPLES / "train_and_serve.py"]
    environment = {**os.environ, "PYTHONWARNINGS": "default", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith(" ms")]
    assert len(rows) > 2
    (even, odd), (even_in_the_end, odd_in_the_end) = [[float(text) for text in row[1:3]] for row in (rows[0], rows[-1])]
    assert even < 0.1 < 0.9 < odd
    assert odd_in_the_end < 0.1 < 0.9 < even_in_the_end
    assert int(rows[-1][3]) >= len(rows) - 1
    assert not [*tmp_path.glob("train_and_serve-*"), *tmp_path.glob("damo_torchrec-*")]


def test_the_program_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "serve.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a checkpoint: damo_torchrec.serving.export makes one to serve" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "0"],
        ["--batch-samples", "-1"],
        ["--max-ids", "0"],
        ["--max-connections", "0"],
        ["--client-seconds", "nan"],
        [],
    ],
)
def test_the_command_line_refuses_what_cannot_be(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        serve.parse_arguments([*(["checkpoint"] if options else []), *options])
    assert "error:" in capsys.readouterr().err


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of the file, and long\n")
    by_file = serve.parse_arguments(["checkpoint", "--token-file", str(tmp_path / "token"), "--allow-host", "Ranker"])
    without = serve.parse_arguments(["checkpoint", "--host", "2001:DB8::7"])
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert serve.access_of(by_file).token == "of the file, and long"
    assert "ranker" in serve.access_of(by_file).hosts
    assert serve.access_of(without).token is None
    assert "[2001:db8::7]" in serve.access_of(without).hosts
    monkeypatch.setenv(serve.TOKEN, "of the environment")
    assert serve.access_of(without).token == "of the environment"
    with pytest.raises(ValueError, match="either --token-file or DAMO_SERVE_TOKEN, got both"):
        serve.access_of(by_file)
    monkeypatch.setenv(serve.TOKEN, "")
    with pytest.raises(ValueError, match="at least 16 characters, got 0"):
        serve.access_of(without)


def test_large_bodies_together_are_no_less_than_one() -> None:
    arguments = serve.parse_arguments(["checkpoint", "--max-bodies", "1MiB"])
    with pytest.raises(ValueError, match="--max-bodies 1MiB is less than --max-body 8MiB"):
        serve.limits_of(arguments)


def test_a_server_everywhere_has_to_be_told_its_names(caplog: pytest.LogCaptureFixture) -> None:
    access = serve.access_of(serve.parse_arguments(["checkpoint", "--host", "0.0.0.0"]))
    assert "0.0.0.0" not in access.hosts
    assert "--allow-host" in caplog.text
