"""What a package loses against the reference, in vectors and in what a search would find. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near one set of vectors is to the reference's, for the same texts."""

    texts: int
    least_cosine: float
    mean_cosine: float
    top10: float
    """Of each text's ten nearest others by the reference, the share that is among the ten nearest here."""
    given_away: float
    """Of the similarity, by the reference, of a text to its ten nearest, the share lost by taking the ten found here:
    near nothing where they were only exchanged for others as good."""

    @property
    def loss(self) -> float:
        """What a limit is about: the larger of what the vectors lost, 1 - mean cosine, and what a search gives away."""
        return max(0.0, 1 - self.mean_cosine, self.given_away)


def compare(vectors: np.ndarray, expected: np.ndarray) -> Agreement:
    """Both (texts, dimensions), with more than ten texts. Vectors that are not finite agree with nothing."""
    vectors, expected = _unit(np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)), _unit(expected)
    cosines = (vectors * expected).sum(axis=1)
    truth = expected @ expected.T
    best, found = _nearest(truth), _nearest(vectors @ vectors.T)
    common = [len(set(ours) & set(theirs)) for ours, theirs in zip(found.tolist(), best.tolist(), strict=True)]
    kept, possible = (np.take_along_axis(truth, each, axis=1).sum() for each in (found, best))
    return Agreement(
        texts=len(vectors),
        least_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        top10=float(np.mean(common)) / NEIGHBOURS,
        given_away=float(np.clip(1 - kept / possible, 0, 1)),
    )


def _nearest(similarities: np.ndarray) -> np.ndarray:
    """Of each row the ten most similar others."""
    others = similarities.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :NEIGHBOURS]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    scaled: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled
