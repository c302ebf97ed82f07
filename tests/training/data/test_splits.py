"""Nothing unseen may look seen: the split itself, and which file names count as unseen."""

from pathlib import Path

import pytest

from models.errors import DataError
from training.data.dataset import Splits, load_drawings, load_splits, named_like, tokens, unseen_names


def test_shared_splits_are_the_published_ones(shared_splits: Splits) -> None:
    assert (len(shared_splits.seen), len(shared_splits.unseen), len(shared_splits.unseen_words)) == (1314, 322, 77)
    assert len(shared_splits.validation_drawings) == 1380
    assert not shared_splits.seen & shared_splits.unseen


def test_a_word_is_unseen_exactly_when_all_its_emoji_are_and_a_seen_word_has_no_unseen_emoji(
    shared_splits: Splits,
) -> None:
    for word, codes in shared_splits.concepts.items():
        unseen = [code in shared_splits.unseen for code in codes]
        assert all(unseen) == (word in shared_splits.unseen_words)
        assert all(unseen) or not any(unseen)


def test_every_unseen_word_excludes_a_file_of_its_own_name(shared_splits: Splits) -> None:
    names = unseen_names(shared_splits, [])
    for word in shared_splits.unseen_words:
        assert named_like(word, names)
        assert named_like(f"a nice {word.replace(' ', '_')}_01", names)
        assert named_like(word.replace(" ", ""), names)


@pytest.mark.parametrize(
    ("unseen", "name"),
    [
        ("hand", "hand palm"),
        ("mouth", "Mouth-Body-Part 01"),
        ("knife", "knives"),
        ("butterfly", "butterflies"),
        ("wristwatch", "two wristwatches"),
        ("firetruck", "fire truck"),
        ("fire hydrant", "firehydrant 02"),
        ("whale", "bluewhale md"),
        ("moustache", "mustache"),
        ("donut", "doughnuts"),
        ("woman’s boot", "boots 01"),
    ],
)
def test_spellings_plurals_and_compounds_count_as_unseen(unseen: str, name: str) -> None:
    assert named_like(name, [tokens(unseen)])


@pytest.mark.parametrize(
    ("unseen", "name"), [("fire hydrant", "fire exit"), ("car", "scarf"), ("hat", "chat"), ("old key", "old lock")]
)
def test_other_names_do_not(unseen: str, name: str) -> None:
    assert not named_like(name, [tokens(unseen)])


def test_another_name_of_an_unseen_word_counts_too(drawings_dir: Path) -> None:
    (drawings_dir / "splits.json").write_text(
        '{"seen": [], "unseen": [], "unseen_words": ["house"], "validation_drawings": []}'
    )
    assert named_like("home", unseen_names(load_splits(drawings_dir), []))


def test_drawings_are_read_from_plain_files_and_a_folder_without_any_is_an_error(
    drawings_dir: Path, tmp_path: Path
) -> None:
    splits = load_splits(drawings_dir)
    drawings = list(load_drawings(drawings_dir, splits))
    assert [d.word for d in drawings] == ["cat", "owl", "cat"]
    assert drawings[0].strokes == [[[0, 200], [0, 100]]]
    with pytest.raises(DataError, match="ndjson drawings in"):
        list(load_drawings(tmp_path, splits))
    with pytest.raises(DataError, match=r"no splits\.json"):
        load_splits(tmp_path)
