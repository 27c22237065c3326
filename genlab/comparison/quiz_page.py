"""The page of "Which is real?": one HTML file that shows items and counts a person's hits."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genlab.comparison.html_report import script_csp_hash
from genlab.fileio import atomic_write
from genlab.untrusted.text import to_printable_text

TEMPLATE = Path(__file__).with_name("quiz_page.html")
MIN_SIDE_PIXELS = 280  # of an image on the page, which is enlarged by a whole factor


@dataclass(frozen=True)
class Quiz:
    """The items and numbers that a quiz shows.

    Attributes:
        items: images (H, W, 1 or 3) of bytes, or texts, in the order of the page.
        is_real: of each item.
        taken_for_real: by the classifier, of each item.
        classifier_accuracy: in percent, with its standard error.
        classifier_items: how many items that was measured on.
    """

    items: list[np.ndarray | str]
    is_real: list[bool]
    taken_for_real: list[bool]
    title: str
    classifier_accuracy: str
    classifier_items: int


def write_quiz_page(quiz: Quiz, path: Path) -> None:
    """Write the page of a quiz."""
    atomic_write(path, render_quiz_page(quiz).encode("utf-8", "replace"))


def render_quiz_page(quiz: Quiz) -> str:
    """Return the page of a quiz as HTML."""
    import jinja2

    from genlab import __version__

    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    keys = [
        (find_key(i, "data", real), find_key(i, "classifier", guess))
        for i, (real, guess) in enumerate(zip(quiz.is_real, quiz.taken_for_real, strict=True))
    ]
    return environment.from_string(source).render(
        title=to_printable_text(quiz.title),
        items=[
            item_template_values(item) | {"key": key, "guess": guess}
            for item, (key, guess) in zip(quiz.items, keys, strict=True)
        ],
        n=len(quiz.items),
        classifier_accuracy=quiz.classifier_accuracy,
        classifier_items=f"{quiz.classifier_items:,}",
        script_hash=script_csp_hash(source),
        version=__version__,
    )


def item_template_values(item: np.ndarray | str) -> dict[str, Any]:
    """Return what the template shows of an item: a text, or a picture as a data URI."""
    if isinstance(item, str):
        return {"text": item, "source": "", "width": 0, "height": 0}
    from PIL import Image

    image = Image.fromarray(item[..., 0] if item.shape[2] == 1 else item).convert("RGB")
    factor = max(1, -(-MIN_SIDE_PIXELS // max(image.size)))
    file = io.BytesIO()
    image.save(file, format="PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return {
        "text": "",
        "source": f"data:image/png;base64,{encoded}",
        "width": image.width * factor,
        "height": image.height * factor,
    }


# --- answers --------------------------------------------------------------------------------------


def find_key(item: int, purpose: str, answer: bool) -> str:
    """Return a key, the first whose hash has the answer as its parity.

    So the source of the page does not show the answers; its script computes the hash.
    """
    start = hash_text(f"{purpose} {item}")
    keys = (f"{(start + 2654435761 * trial) % 2**32:08x}" for trial in range(2**16))
    return next(key for key in keys if hash_parity(key, item) == answer)


def hash_parity(key: str, item: int) -> bool:
    """Return the parity of the bits of the hash of a key and the number of its item."""
    return bool(hash_text(f"{key}:{item}").bit_count() % 2)


def hash_text(text: str) -> int:
    """Return the 32 bits of the hash FNV-1a of a text, which the page's script computes too."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value
