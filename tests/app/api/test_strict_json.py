"""JSON is counted before it is parsed, and text that the stores cannot hold is refused."""

import gc
import json
import sys
import threading
import time

import pytest

from app.api.strict_json import parse_json
from app.errors import Invalid, Malformed, ServiceError, TooMuchWork

SEPARATORS = ",:[{" * 50


@pytest.mark.parametrize(
    "value",
    [
        list(range(100)),
        [SEPARATORS] * 30,
        {SEPARATORS: [f'"{SEPARATORS}\\', {"a": SEPARATORS}]},
        {"path": "M0,0 L1,1 " * 1000},
    ],
    ids=["numbers", "texts", "names", "svg"],
)
def test_separators_inside_of_texts_do_not_count(value: object) -> None:
    assert parse_json(json.dumps(value), 200) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 200 + "[]]",
        "[" + "{}," * 200 + "{}]",
        "[" + "1," * 201 + "1]",
        "{" + ",".join(f'"{at}":0' for at in range(150)) + "}",
        '[""' + ' ""' * 300 + f',"{SEPARATORS}"]',
        '["' + SEPARATORS + '",' + '"a",' * 200 + "1]",
    ],
    ids=["lists", "objects", "numbers", "names", "quotes", "texts"],
)
def test_too_many_values_are_refused_before_they_are_parsed(text: str) -> None:
    with pytest.raises(TooMuchWork):
        parse_json(text, 200)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (r'{"a": {"b": ["x", "y\u0000"]}}', "a.b[1]"),
        (r'{"a\u0000b": 1}', "a\\0b"),
        (r'[{"caption": "\u0000"}]', "[0].caption"),
        (r'"\u0000"', "the body"),
    ],
)
def test_nul_is_refused_and_its_field_named(text: str, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_json(text)
    assert [error.field for error in caught.value.errors] == [field]


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert parse_json(r'{"a": "\\u0000"}') == {"a": r"\u0000"}


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 49_000 + "1]",
        "[" + "1.5," * 249_000 + "1]",
        '["' + '","'.join(map(str, range(62_000))) + '"]',
        "{" + ",".join(f'"m{at}":0' for at in range(41_000)) + "}",
        "[" + '{"a":1},' * 27_000 + "1]",
    ],
    ids=["lists", "numbers", "texts", "names", "objects"],
)
def test_the_most_that_is_parsed_holds_the_interpreter_for_milliseconds(text: str) -> None:
    data = text.encode()
    times_s = []
    for _ in range(5):
        started_s = time.thread_time()
        parse_json(data)
        times_s.append(time.thread_time() - started_s)
    assert min(times_s) < 0.05


def test_threads_that_parse_at_once_leave_the_garbage_collector_on() -> None:
    def parse() -> None:
        for _ in range(20_000):
            parse_json(b"[1]")

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=parse) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gc.isenabled()
    finally:
        sys.setswitchinterval(interval_s)
        gc.enable()


def test_a_text_without_end_is_searched_once() -> None:
    with pytest.raises(Malformed):
        parse_json('"' + SEPARATORS + '\\"' * 1_000_000, 200)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[" * 100_000, Malformed), ('"\\ud800"', Malformed), (b'"\xff"', Malformed), ("[NaN]", Invalid), ("", Malformed)],
)
def test_other_text_is_refused(text: str | bytes, kind: type[ServiceError]) -> None:
    with pytest.raises(kind):
        parse_json(text)
