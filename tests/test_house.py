"""Sizes, comments, docstrings, words and imports of the code base stay within bounds.

`python -m tests.test_house` prints each figure; one over its bound is named with its places, and the exit status is 1.
"""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("app", "models", "training")
MAX_LOOSE_MODULES, MAX_FILES_A_FOLDER, MAX_FUNCTION_LINES = 6, 14, 60
MAX_P95_LINES = 300
COMMENTS_PER_HUNDRED_LINES = (3.0, 6.0)
MIN_DOCSTRINGS_PERCENT = 93.0

# The glossary's left column. Words that are also ordinary English (work, place, job, look) are matched only as the
# names they had in code.
OUT = {
    "lane": r"lanes?",
    "held place": r"held_?place",
    "desk": r"desks?",
    "picture": r"pictures?",
    "pixels away": r"let_pixels_go|pixels_away|pixels away",
    "facts": r"facts",
    "write points": r"write_points?|write points?|reached\(",
    "buried": r"buried|carried over",
    "collect later": r"collect later",
    "resting": r"resting|patience",
    "upkeep": r"upkeep",
    "at hand": r"at hand|kept",
    "told": r"told|said",
    "likeness": r"likeness(?:es)?",
    "lean": r"lean|folded",
    "ink": r"inks?",
    "anew": r"anew",
}
WORD = re.compile("|".join(f"(?P<w{at}>(?<![a-z])(?:{word})(?![a-z]))" for at, word in enumerate(OUT.values())), re.I)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".html", ".js"}
ALLOWED: list[tuple[str, str]] = [
    # Names that stay: settings, metrics, stored and wire names.
    (r".*", r"VERMOUTH_LANES|VERMOUTH_PICTURE_CACHE_BYTES|vermouth_picture_cache_bytes"),
    (r"(app|tests|benchmarks)/.*", r"\blanes\b *[:=]|[\"'.]lanes\b|picture_cache_bytes"),
    (r".*", r"keep_?alive|--log-kept|log_kept"),
    (r".*", r"docs/pictures|pictures/\w+\.(png|svg)|eval[\" ,]+pictures|command\(\"pictures\"\)"),
    (r"(app/stores|docs/adr)/.*", r"[`\"\[]pictures?(_held_until)?\b|\bfacts\b"),
    # The data set's files and kinds, and the captions that the prior learnt.
    (
        r"(tests/)?(training|models)/.*",
        r"pictures[.-][\w{]*|[\"/`]picture[\"`]|an? (\w+ )?picture of|kind: str.*`picture`|all but `picture`",
    ),
    # Written by earlier revisions of the benchmarks.
    (r"docs/results/.*", r".*"),
    # What the search is about, and history.
    (r"tests/test_house\.py|CHANGELOG\.md", r".*"),
]
"""Paths and, in their lines, the text that may hold such a word; both are regular expressions."""


@cache
def tracked() -> tuple[Path, ...]:
    """Files under version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(sorted(ROOT / name for name in names if (ROOT / name).is_file()))


def modules(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines(path: Path) -> int:
    return source(path).count("\n")


def percentile(values: list[int], percent: int) -> int:
    """The smallest value that `percent` of the values do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def file_sizes() -> tuple[list[int], list[int]]:
    """Lines of all files, and of those that are not empty."""
    sizes = [lines(path) for path in modules(*CODE)]
    return sizes, [size for size in sizes if size]


def full_folders() -> list[tuple[int, str]]:
    folders = [path.parent for path in modules(*CODE, "benchmarks")]
    return sorted({(folders.count(folder), name(folder)) for folder in folders}, reverse=True)


def long_functions() -> list[tuple[int, str]]:
    found = [
        (node.end_lineno - node.lineno + 1, f"{name(path)}:{node.lineno} {node.name}")
        for path in modules(*CODE, "benchmarks")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    return sorted(found, reverse=True)


def comments_in(path: Path) -> int:
    """Comments, trailing ones too; `noqa` and `type: ignore` count where they give a reason."""
    tokens = tokenize.generate_tokens(io.StringIO(source(path)).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    pragma = re.compile(r"#\s*(?:noqa(?::\s*[A-Z0-9, ]+)?|type:\s*ignore(?:\[[\w, -]+\])?|fmt:\s*\w+)\s*")
    return sum(bool(pragma.sub("", comment, count=1).strip("# -")) for comment in found)


def comment_density() -> float:
    return 100 * sum(map(comments_in, modules(*CODE))) / sum(map(lines, modules(*CODE)))


def public_nouns(path: Path) -> Iterator[tuple[str, bool]]:
    """Public modules, classes, functions and methods, and whether each has a docstring."""
    if source(path).strip():
        yield name(path), ast.get_docstring(tree(path)) is not None
    queue: list[tuple[str, ast.AST]] = [(name(path), tree(path))]
    while queue:
        prefix, parent = queue.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                yield f"{prefix} {node.name}", ast.get_docstring(node) is not None
                if isinstance(node, ast.ClassDef):
                    queue.append((f"{prefix} {node.name}", node))


def undocumented() -> tuple[float, list[str]]:
    """Percent of the public names that have a docstring, and those that have none."""
    found = [noun for path in modules(*CODE) for noun in public_nouns(path)]
    return 100 * sum(has for _, has in found) / len(found), [place for place, has in found if not has]


def foreign_words() -> list[str]:
    """Places of words of the glossary's left column that no entry of `ALLOWED` covers."""
    found = []
    for path in tracked():
        if path.suffix not in TEXT_SUFFIXES or name(path).startswith(("weights/", ".")):
            continue
        allowed = [re.compile(text) for where, text in ALLOWED if re.fullmatch(where, name(path))]
        for number, line in enumerate(source(path).splitlines(), start=1):
            rest = line
            for text in allowed:
                rest = text.sub("", rest)
            split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", rest)
            found += [f"{name(path)}:{number} {match[0]!r}: {line.strip()[:100]}" for match in WORD.finditer(split)]
    return found


def imports(path: Path) -> set[str]:
    """Modules of `app` that a file imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return {module for module in found if module.startswith("app.")}


def within(figures: str, *over: object) -> None:
    """Print figures, and fail with the places that are over the bound."""
    print(figures)  # noqa: T201 - the figures are the output
    assert not over, "\n".join([figures, *map(str, over)])


def test_few_modules_lie_loose_in_app() -> None:
    loose = [name(path) for path in modules("app") if path.parent == ROOT / "app" and path.name != "__init__.py"]
    within(f"{len(loose)} modules in app/: {', '.join(loose)}", *(loose if len(loose) > MAX_LOOSE_MODULES else []))
    assert not source(ROOT / "app" / "__init__.py")


def test_no_folder_is_full() -> None:
    found = full_folders()
    within(f"largest folder: {found[0]}", *(one for one in found if one[0] > MAX_FILES_A_FOLDER))


def test_no_function_is_long() -> None:
    found = long_functions()
    within(f"longest function: {found[0]}", *(one for one in found if one[0] > MAX_FUNCTION_LINES))


def test_files_are_short() -> None:
    everything, sizes = file_sizes()
    median, p95 = statistics.median(sizes), percentile(sizes, 95)
    with_empty = f"with empty files {statistics.median(everything):.0f} and {percentile(everything, 95)}"
    figures = f"lines a file: median {median:.0f}, p95 {p95}, most {max(sizes)}; {with_empty}"
    longest = sorted(((lines(path), name(path)) for path in modules(*CODE)), reverse=True)[:20]
    within(figures, *(longest if p95 > MAX_P95_LINES else []))


def test_comments_stand_where_a_reader_stops() -> None:
    least, most = COMMENTS_PER_HUNDRED_LINES
    by_folder = {folder: sum(map(comments_in, modules(folder))) for folder in CODE}
    figures = f"comments in a hundred lines: {comment_density():.2f} {by_folder}"
    within(figures, *([] if least <= comment_density() <= most else [f"allowed: {least} to {most}"]))


def test_public_names_have_docstrings() -> None:
    percent, missing = undocumented()
    within(f"public docstrings: {percent:.1f} %", *(missing if percent < MIN_DOCSTRINGS_PERCENT else []))


def test_the_fields_words_are_used() -> None:
    found = foreign_words()
    within(f"words of the glossary's left column: {len(found)}", *found)


@pytest.mark.parametrize(
    ("module", "importers"),
    [
        pytest.param("app.settings", r"app/(main|server|composition)\.py|app/cli/.*", id="settings"),
        pytest.param("app.api.schemas", r"app/api/.*", id="schemas"),
        pytest.param("app.main", r"app/server\.py|app/cli/.*", id="main"),
        pytest.param("app.composition", r"app/(main|server)\.py|app/cli/.*", id="composition"),
    ],
)
def test_who_imports(module: str, importers: str) -> None:
    found = [name(path) for path in modules(*CODE) if any(f"{one}.".startswith(f"{module}.") for one in imports(path))]
    within(f"{module} is imported by {found}", *(one for one in found if not re.fullmatch(importers, one)))


def test_domain_and_errors_stand_alone() -> None:
    allowed = {"app.errors"}
    domain = {one for one in imports(ROOT / "app" / "domain.py") if not any(one.startswith(ok) for ok in allowed)}
    within(f"domain imports {domain or 'nothing'} of app beside errors", *domain)
    within("errors imports nothing of app", *imports(ROOT / "app" / "errors.py"))


def main() -> int:
    """Print every figure, whether or not it is within its bound; 1 if one is over it."""
    failed = 0
    total, benchmarks = (sum(map(lines, modules(*folders))) for folders in (CODE, ("benchmarks",)))
    print(f"{' + '.join(CODE)}: {total} lines in {len(modules(*CODE))} files; benchmarks: {benchmarks} lines")  # noqa: T201 - as above
    for test in (
        test_few_modules_lie_loose_in_app,
        test_no_folder_is_full,
        test_no_function_is_long,
        test_files_are_short,
        test_comments_stand_where_a_reader_stops,
        test_public_names_have_docstrings,
        test_the_fields_words_are_used,
        test_domain_and_errors_stand_alone,
    ):
        try:
            test()
        except AssertionError as err:
            failed = 1
            print(  # noqa: T201 - as above
                f"OVER {test.__name__}: {str(err)[:4000]}"
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
