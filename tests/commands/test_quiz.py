"""genlab quiz: the classifier is fair, and the page keeps its answers to itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.cli_runner import run_here

from genlab.comparison.quiz_page import Quiz, find_key, hash_parity, hash_text, render_quiz_page
from genlab.inference import two_sample_test
from genlab.inference.two_sample_test import (
    accuracy_and_error,
    predict_real_images,
    predict_real_texts,
    shrink_images,
)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(two_sample_test, "NUM_TREES", 40)


def draw_images(rng: np.random.Generator, mean: float, n: int = 150) -> np.ndarray:
    return rng.normal(mean, 20, (n, 4, 4, 1)).clip(0, 255).astype(np.uint8)


def test_classifier_is_at_chance_for_one_distribution_and_best_for_two():
    """Two normal distributions at a distance d: the best accuracy is Φ(d/2)."""
    rng = np.random.default_rng(0)
    same = predict_real_images(draw_images(rng, 100), draw_images(rng, 100))
    accuracy, error = accuracy_and_error(same, 150)
    assert abs(accuracy - 0.5) < 3 * error
    other = predict_real_images(draw_images(rng, 100), draw_images(rng, 160))
    assert accuracy_and_error(other, 150)[0] > 0.98
    letters = np.array(list("abcdefgh"))
    texts = ["".join(rng.choice(letters, 30)) for _ in range(200)]
    accuracy, error = accuracy_and_error(predict_real_texts(texts[:100], texts[100:]), 100)
    assert abs(accuracy - 0.5) < 3 * error
    words = ["".join(sorted(text)) for text in texts[100:]]
    assert accuracy_and_error(predict_real_texts(texts[:100], words), 100)[0] > 0.95


def test_large_images_are_averaged_over_blocks():
    images = np.arange(2 * 64 * 64 * 3, dtype=np.uint64).reshape(2, 64, 64, 3) % 251
    rows = shrink_images(images.astype(np.uint8))
    assert rows.shape == (2, 32 * 32 * 3)
    expected = images[0, :2, :2, 1].astype(float).mean()
    assert rows[0].reshape(32, 32, 3)[0, 0, 1] == pytest.approx(expected)


def test_page_hides_the_answers_that_its_script_computes():
    assert hash_text("foobar") == 0xBF9CF968  # of the authors of FNV-1a
    rng = np.random.default_rng(1)
    is_real = [True, False] * 5
    images = [rng.integers(0, 255, (8, 8, 1), dtype=np.uint8) for _ in is_real]
    quiz = Quiz(images, is_real, is_real[::-1], "Which is real?", "75.0 ± 2.5", 600)
    page = render_quiz_page(quiz)
    keys = re.findall(r'data-key="(\w+)" data-other="(\w+)"', page)
    for i, (key, other) in enumerate(keys):
        assert hash_parity(key, i) == is_real[i] and hash_parity(other, i) == is_real[9 - i]
        assert key == find_key(i, "data", is_real[i])
    assert len(keys) == 10 and "75.0 ± 2.5 %" in page and "5 of 10" in page
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    shape = {re.sub(r'"[^"]*"', '""', figure) for figure in figures}
    assert len(shape) == 1  # real and drawn items differ in nothing but their values
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=vae", "model.hidden=[8]"),
        ("model=gpt_pixels", "model.num_layers=1", "model.width=16"),
    ],
    ids=["means", "drawn pixels"],
)
def test_command_mixes_real_and_drawn_items(overrides, tmp_path):
    run = tmp_path / "run"
    steps = ("trainer.steps=2", "trainer.batch_size=8", "trainer.preview_every=0", "device=cpu")
    run_here("train", *overrides, *steps, f"out={run}", cwd=tmp_path)
    assert (
        run_here(
            "quiz", f"run={run}", "n=6", "classifier_items=40", "device=cpu", cwd=tmp_path
        ).code
        == 0
    )
    (path,) = (run / "samples").glob("quiz*.json")
    record = json.loads(path.read_text())
    assert sum(record["is_real"]) == 3 and record["classifier_items"] == 80
    assert record["classifier_accuracy"]["value"] > 0.9  # two steps do not make digits
    assert path.with_suffix(".html").exists()
