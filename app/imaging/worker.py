"""A process that decodes: files in, their canonical forms out, until its parent is gone.

Run by `app.imaging.decoding`. It imports neither torch nor anything of the web, so that it is small and soon there.
"""

import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from app.domain import Limits
from app.errors import ServiceError, UndecodableImage
from app.imaging.files import open_file
from app.runtime.process import DECODER_NICENESS, be_nice
from models.errors import InputError
from models.transforms import canonical_sketch, fit_square

READY = "ready"
"""Said once, when everything is imported: who ends before could decode nothing, whatever the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to look at.

    Attributes:
        data: the file.
        limits: of the service.
        size: side of its form, px.
    """

    data: bytes
    limits: Limits
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is to see in a file.

    Attributes:
        height: of the oriented picture, px.
        width: of the oriented picture, px.
        is_sketch: whether `form` is the canonical form of a line drawing; else it is the whole picture, fitted.
        form: [size, size, 3] uint8 RGB.
        decode_s: seconds that decoding took.
    """

    height: int
    width: int
    is_sketch: bool
    form: NDArray[np.uint8]
    decode_s: float


def look(job: Job) -> Look:
    """Decode and bring into form.

    Raises:
        UndecodableImage, UnsupportedMedia, ImageTooLarge.
    """
    started_s = time.perf_counter()
    pixels = np.ascontiguousarray(open_file(job.data, job.limits).read())
    decode_s = time.perf_counter() - started_s
    try:
        sketch = canonical_sketch(pixels, job.size)
        form = fit_square(pixels, job.size) if sketch is None else sketch
    except InputError as err:
        raise UndecodableImage("The image holds nothing to look at.") from err
    height, width = pixels.shape[:2]
    return Look(height=height, width=width, is_sketch=sketch is not None, form=form, decode_s=decode_s)


def main() -> None:
    """Answer one job after another on the socket whose number is the argument."""
    # A terminal or a supervisor ends the whole group; the parent drains, and this ends when its socket does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_nice(DECODER_NICENESS)
    with Connection(int(sys.argv[1])) as parent:
        parent.send(READY)
        while True:
            try:
                job: Job = parent.recv()
            except (EOFError, OSError):
                return
            answer: Look | Exception
            try:
                answer = look(job)
            except ServiceError as err:
                answer = err
            except Exception:  # noqa: BLE001 - the parent raises it where it is logged
                answer = RuntimeError(traceback.format_exc())
            try:
                parent.send(answer)
            except OSError:
                return
