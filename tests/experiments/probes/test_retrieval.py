"""Retrieval: a loop over all keys, by torch in pieces and by faiss."""

import math

import pytest
import torch

import experiments.probes.retrieval as retrieval
from experiments.probes.retrieval import PatchMemory


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(57, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    return keys, torch.rand(57, 4, generator=generator).softmax(1), queries


def looked_up(keys, values, query, neighbours, temperature):
    """The read-out of one query, as a loop."""
    similar = [(float(key @ query / (key.norm() * query.norm())), index) for index, key in enumerate(keys)]
    nearest = sorted(similar, reverse=True)[:neighbours]
    weights = [math.exp(similarity / temperature) for similarity, _ in nearest]
    total = sum(weights)
    return sum(weight / total * values[index] for weight, (_, index) in zip(weights, nearest, strict=True))


@pytest.mark.parametrize('use_faiss', [False, True])
@pytest.mark.parametrize('neighbours', [1, 5, 100])
def test_the_read_out_is_that_of_a_loop(sample, monkeypatch, neighbours, use_faiss):
    if use_faiss:
        pytest.importorskip('faiss', reason='faiss is not installed, and optional')
    monkeypatch.setattr(retrieval, '_CHUNK', 10)
    keys, values, queries = sample
    probs = PatchMemory(keys, values, neighbours, temperature=0.1, use_faiss=use_faiss)(queries)
    assert probs.shape == (2, 3, 4)
    for row in range(2):
        for column in range(3):
            wanted = looked_up(keys, values, queries[row, column], neighbours, 0.1)
            torch.testing.assert_close(probs[row, column], wanted, atol=1e-5, rtol=1e-5)


def test_a_patch_of_the_memory_finds_itself(sample):
    keys, values, _ = sample
    torch.testing.assert_close(PatchMemory(keys, values, neighbours=1)(3 * keys), values)
