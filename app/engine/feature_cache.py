"""Features of samples seen before, the least recently used dropped first; bounded in bytes."""

from collections import OrderedDict

from app.engine.entries import CacheKey, Output


class FeatureCache:
    """Touched by the loop thread alone. Who asks for the same sample while it is on its way joins it (the engine
    keeps those); this holds what has arrived.

    Attributes:
        size_bytes: memory held now.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._outputs: OrderedDict[CacheKey, Output] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outputs)

    def get(self, key: CacheKey) -> Output | None:
        """The output of a sample seen before, None otherwise."""
        output = self._outputs.get(key)
        if output is not None:
            self._outputs.move_to_end(key)
        return output

    def put(self, key: CacheKey, output: Output) -> None:
        """Keep an output, and drop old ones until the bound holds; one over the bound is not kept."""
        known = self._outputs.pop(key, None)
        if known is not None:
            self.size_bytes -= known.size_bytes
        if output.size_bytes > self._max_bytes:
            return
        self._outputs[key] = output
        self.size_bytes += output.size_bytes
        while self.size_bytes > self._max_bytes:
            _, dropped = self._outputs.popitem(last=False)
            self.size_bytes -= dropped.size_bytes
