"""Classifier two-sample test: can a classifier tell samples from data on unseen items?

Lopez-Paz & Oquab 2017, https://arxiv.org/abs/1610.06545: a classifier two-sample test. If samples
and data have one distribution, no classifier does better than chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genlab.metrics.base import binomial_standard_error

NUM_FOLDS = 5
NUM_TREES = 300
MAX_SIDE = 32  # of an image that the trees see; larger ones are averaged over blocks
MIN_ITEMS = 2 * NUM_FOLDS  # of each kind


def predict_real_images(real: np.ndarray, drawn: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return for real images (N, H, W, C) and drawn ones (N, H, W, C) which look real (2N,).

    Extremely randomized trees on the pixels predict each fifth of the items after training on the
    others.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    features = np.concatenate([shrink_images(real), shrink_images(drawn)])
    trees = ExtraTreesClassifier(NUM_TREES, min_samples_leaf=2, random_state=seed)
    return cross_validated_predictions(trees, features, len(real), seed)


def predict_real_texts(real: Sequence[str], drawn: Sequence[str], *, seed: int = 0) -> np.ndarray:
    """Return for real texts (N) and drawn ones (N) which look real (2N,).

    Logistic regression on the frequencies of one to four successive characters predicts each fifth
    of the items after training on the others.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False
    )
    classifier = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000))
    texts = np.array([*real, *drawn], dtype=object)
    return cross_validated_predictions(classifier, texts, len(real), seed)


def cross_validated_predictions(
    classifier: object, features: np.ndarray, num_real: int, seed: int
) -> np.ndarray:
    """Return which of the items (2N,) a classifier takes for real, without having seen them.

    Args:
        features: of the real items, then of the drawn ones.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    is_real = np.arange(len(features)) < num_real
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    predicted: np.ndarray = cross_val_predict(classifier, features, is_real, cv=folds)
    return predicted


def shrink_images(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, C) as rows (N, D), large ones averaged over blocks of pixels."""
    block = -(-max(images.shape[1:3]) // MAX_SIDE)
    height, width = (size // block * block for size in images.shape[1:3])
    cropped = images[:, :height, :width].astype(np.float32)
    blocks = cropped.reshape(len(images), height // block, block, width // block, block, -1)
    rows: np.ndarray = blocks.mean((2, 4)).reshape(len(images), -1)
    return rows


def accuracy_and_error(predicted: np.ndarray, num_real: int) -> tuple[float, float]:
    """Return the share of right predictions (2N,), and its standard error."""
    right = predicted == (np.arange(len(predicted)) < num_real)
    accuracy = float(right.mean())
    return accuracy, binomial_standard_error(accuracy, len(right))
