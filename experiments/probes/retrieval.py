"""Segmentation by retrieval, without any training: patches look up the labels of the training patches most like them.

The read-out of Hummingbird (Balazevic et al., "Towards In-Context Scene Understanding", arXiv 2306.01667), in the form
of its open evaluation (open-hummingbird-eval): keys are training tokens of length 1, values the class shares of their
patches; a query attends over its nearest keys, with softmax of the cosine similarities divided by a temperature.
:data:`NEIGHBOURS` and :data:`TEMPERATURE` are theirs. Departures: patches of the memory are drawn evenly (not more of
rare classes), training images are not augmented, and the memory is smaller by default (theirs: 10,240,000).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 30
TEMPERATURE = 0.02
MEMORY_SIZE = 20_000
_CHUNK = 1 << 16  # keys compared at a time


class PatchMemory:
    """Keys and values of training patches.

    Args:
        tokens: (M, channels) float.
        targets: (M, C), rows sum to 1.
        neighbours: How many keys a query attends to; all if there are fewer.
        temperature: What similarities are divided by.
        use_faiss: Whether the exact index of faiss searches (CPU); None = if it is installed and tokens are on the CPU.
            Results are the same but for ties.
    """

    def __init__(
        self,
        tokens: Tensor,
        targets: Tensor,
        neighbours: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        use_faiss: bool | None = None,
    ) -> None:
        self.keys, self.values = F.normalize(tokens, dim=1), targets
        self.neighbours, self.temperature = min(neighbours, len(tokens)), temperature
        if use_faiss is None:
            use_faiss = tokens.device.type == 'cpu' and importlib.util.find_spec('faiss') is not None
        self._index = _faiss_index(self.keys) if use_faiss else None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Class probabilities of queries: (..., channels) -> (..., C)."""
        queries = F.normalize(tokens.flatten(0, -2), dim=1)
        similarities, indices = self._search(queries)  # (n, neighbours)
        weights = (similarities / self.temperature).softmax(dim=1)
        probs = torch.einsum('nk,nkc->nc', weights, self.values[indices])
        return probs.unflatten(0, tokens.shape[:-1])

    def _search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarities and indices of the nearest keys, each (n, neighbours)."""
        if self._index is not None:
            found, places = self._index.search(queries.numpy(), self.neighbours)
            return torch.from_numpy(found), torch.from_numpy(places)
        best = queries.new_empty(len(queries), 0)
        indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(self.keys), _CHUNK):
            similarities = queries @ self.keys[start : start + _CHUNK].T
            nearest, where = similarities.topk(min(self.neighbours, similarities.shape[1]), dim=1)
            best, indices = torch.cat((best, nearest), dim=1), torch.cat((indices, where + start), dim=1)
            best, order = best.topk(min(self.neighbours, best.shape[1]), dim=1)
            indices = indices.gather(1, order)
        return best, indices


def _faiss_index(keys: Tensor) -> Any:
    import faiss  # optional

    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys.contiguous().numpy())
    return index
