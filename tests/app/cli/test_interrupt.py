"""Ctrl-C ends a command at once, with exit code 130, a word instead of a traceback, and no half-written file."""

import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.app.api.images import png
from tests.client.scripted import Request, scripted

SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from app.cli.main import app
app()
"""
BESIDE = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt():
    sys.stdin.readline()
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # interrupts no wait of the main thread
    threading.Event().wait()

threading.Thread(target=interrupt, daemon=True).start()
from app.cli.main import app
app()
"""
EPISODE = {"id": "ep_1", "name": "pets", "version": 1, "method": "prototype", "fingerprint": "", "expires_at": None}
ANSWERS = {
    "GET /readyz": {"status": "ready", "features": [], "training_free": False},
    "GET /fewshot/episodes": {"episodes": [{**EPISODE, "ways": []}], "next_cursor": None, "total": 1},
}


@pytest.mark.parametrize(
    ("arguments", "script"),
    [
        ("retrieve --text cat", BESIDE),
        ("classify pets photos --csv", BESIDE),
        ("retrieve --text cat", SCRIPT),
        ("retrieve photos --image --sheet sheets", SCRIPT),
        ("segment photos/0.png -c cat --overlay out.png --coco out.json", SCRIPT),
        ("classify pets photos --csv", SCRIPT),
        ("embed photos --npy vectors.npy", SCRIPT),
        ("episode create photos", SCRIPT),
        ("gallery export default out.tar", SCRIPT),
        ("gallery import photos --gallery mine", SCRIPT),
        ("gallery demo --gallery mine", SCRIPT),
    ],
)
def test_a_command_that_waits_for_the_service_ends_at_once(arguments: str, script: str, tmp_path: Path) -> None:
    for folder in ("photos", "photos/a", "photos/b"):
        (tmp_path / folder).mkdir()
        for at in range(9):
            (tmp_path / folder / f"{at}.png").write_bytes(png())
    before = sorted(tmp_path.rglob("*"))
    is_asked, is_over = threading.Event(), threading.Event()

    def answer(request: Request) -> None:
        known = ANSWERS.get(f"{request.command} {request.path}".partition("?")[0])
        if known is not None:
            request.send(200, known)
        else:
            is_asked.set()
            is_over.wait(60)

    with scripted(answer) as url:
        command = [sys.executable, "-c", script, *shlex.split(arguments), "--url", url]
        with subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert is_asked.wait(20), process.communicate()
                if script is BESIDE:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                else:
                    process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=20)
            finally:
                is_over.set()
                process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("interrupted")
    assert not output
    assert sorted(tmp_path.rglob("*")) == before
