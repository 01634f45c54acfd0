"""The Dockerfile's own command, without Docker: as its user, who may write two folders and no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.small import K4, free_port, save_checkpoint
from tests.test_cli import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PATIENCE = 200.0


def command() -> list[str]:
    return json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])


def uid() -> int:
    return int(re.search(r"useradd .*--uid (\d+)", DOCKERFILE)[1])


def test_it_runs_as_a_user_of_its_own_and_listens_where_spaces_look() -> None:
    lines = DOCKERFILE.splitlines()
    assert uid() == 1000 and "USER user" in lines and "EXPOSE 7860" in lines
    assert lines.index("USER user") < lines.index("COPY --chown=user requirements.txt .")
    assert command() == ["python", "app.py", "--port", "7860"] and "GRADIO_SERVER_NAME=0.0.0.0" in DOCKERFILE
    assert "HF_HOME=/home/user/" in DOCKERFILE, "which is the user's own, so that weights can be kept"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may read, with what is served and two folders that the user may write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "app").mkdir()
    shutil.copy(ROOT / "app.py", folder / "app")
    shutil.copytree(ROOT / "nestar", folder / "app/nestar")
    save_checkpoint(folder / "app/assets", [K4])
    for path in (folder / "app").rglob("*"):  # as git lays them
        path.chmod(0o755 if path.is_dir() else 0o644)
    for name in ("tmp", "hf"):
        (folder / name).mkdir()
        os.chown(folder / name, uid(), uid())
    yield folder
    shutil.rmtree(folder)


def as_the_user() -> list[str]:
    """What a command starts with to run as the image's user.

    A Python that only root may read, such as one below /root, can still be run with the capability to read
    everything, which lets nothing be written.
    """
    become = ["setpriv", f"--reuid={uid()}", f"--regid={uid()}", "--clear-groups"]
    read = "import importlib.util; open(importlib.util.find_spec('gradio').origin).read()"
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for prefix in (become, [*become, *reading]):
        tried = subprocess.run([*prefix, sys.executable, "-c", read], cwd="/", capture_output=True)
        if tried.returncode == 0:
            return prefix
    pytest.skip("the image's user may not read this Python, and root here may not lend the right to")


def strewn() -> set[Path]:
    """What the image's user has in folders where everybody may write."""
    found = set()
    for path in (each for folder in ("/tmp", "/var/tmp", "/dev/shm") for each in Path(folder).glob("*")):
        with suppress(FileNotFoundError):  # other tests' files go at any moment
            if path.lstat().st_uid == uid():
                found.add(path)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux's setpriv is not installed")
def test_the_command_serves_as_its_user(place: Path) -> None:
    become, before = as_the_user(), strewn()
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "TMPDIR": str(place / "tmp"),
        "HF_HOME": str(place / "hf"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
    }
    arguments = [*become, sys.executable, *command()[1:-1], str(port)]
    began = time.monotonic()
    page = subprocess.Popen(arguments, cwd=place / "app", env=environment, stderr=subprocess.PIPE, text=True)
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        while True:
            assert page.poll() is None, page.stderr.read()
            assert time.monotonic() - began < PATIENCE, "it is not served"
            try:
                assert client.get("/health").json()["ready"] is True
                break
            except httpx.TransportError:
                time.sleep(0.2)
        started = time.monotonic() - began
        assert client.get("/config").json()["analytics_enabled"] is False
        event = client.post("/gradio_api/call/v2/generate", json={"steps": 1}).json()["event_id"]
        told = client.get(f"/gradio_api/call/generate/{event}").text
        assert "event: complete" in told and "data:image/png" in told
        page.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert page.wait(90) == 0
        assert time.monotonic() - asked < max(10, started), "a platform waits for ten seconds"
    finally:
        page.kill()
        page.wait()
        page.stderr.close()
    assert strewn() == before, "what it writes lies in the folders that are meant for it"
