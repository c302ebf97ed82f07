"""`--show` draws images in the terminal: as Sixel graphics if it says that it can, else as coloured blocks."""

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
VERMOUTH = (sys.executable, "-c", "from app.cli.main import app; app()")
WHAT_CAN_YOU, SIXEL = b"\x1b[c", b"\x1b[?62;4c"
ROWS, COLUMNS, CELL = 24, 80, (10, 20)


def on_terminal(arguments: str, url: str, answer: bytes) -> tuple[int, bytes]:
    """The exit code, and what a terminal receives that gives this answer when it is asked what it can."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, COLUMNS * CELL[0], ROWS * CELL[1]))
    command = [*VERMOUTH, *shlex.split(arguments), "--url", url]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        received = b""
        try:
            while part := os.read(ours, 65536):
                if WHAT_CAN_YOU in part:
                    os.write(ours, answer)
                received += part
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(ours)
    return process.returncode, received


@pytest.mark.parametrize(
    "arguments",
    ["retrieve docs/pictures/sketch.png -k 4 --show", "segment docs/pictures/scene.png -c mailbox --show"],
    ids=["sheet", "overlay"],
)
@pytest.mark.parametrize(("answer", "image"), [(SIXEL, b"\x1bP"), (b"", "▀".encode())], ids=["sixel", "blocks"])
def test_an_image_follows_the_table(client: httpx.Client, arguments: str, answer: bytes, image: bytes) -> None:
    code, received = on_terminal(arguments, str(client.base_url), answer)
    assert code == 0, received
    table, _, _ = received.partition(image)
    assert table.count(b"\n") > 1
    assert b"rank" in table or b"fraction" in table
    assert b"searching" not in table
    assert image in received
    assert b"Traceback" not in received


def test_without_a_terminal_it_says_what_to_do(client: httpx.Client) -> None:
    command = [*VERMOUTH, "retrieve", "--text", "cat", "--show", "--url", str(client.base_url)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--show needs a terminal" in done.stderr
