"""Changes of metadata: replacement and JSON merge patch (RFC 7396)."""

from collections.abc import Callable, Mapping


def merged(target: Mapping[str, object], patch: Mapping[str, object]) -> dict[str, object]:
    """`target` with the members of `patch`: null takes one away, objects are merged, all else replaces."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            old = result.get(name)
            result[name] = merged(old if isinstance(old, Mapping) else {}, value)
        else:
            result[name] = value
    return result


def replaced_by(metadata: Mapping[str, object]) -> Callable[[Mapping[str, object]], Mapping[str, object]]:
    """A change that puts `metadata` in the place of whatever was there."""
    return lambda _: metadata
