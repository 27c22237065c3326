"""Likelihood of one's own texts: log p of each character, as a picture and a table."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genlab.data.text_files import TextReader, UnreadableTextError
from genlab.errors import UserError, make_printable
from genlab.fileio import atomic_write
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.requirements import require_ability
from genlab.inference.results import common_output_folder, make_picture_caption, run_record_fields
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import DataSpec
from genlab.tables import print_wrapped
from genlab.untrusted.files import read_bytes
from genlab.viz.sheets import save_picture_as_sheet
from genlab.viz.surprise_text import ScoredText, draw_scored_texts

MAX_TITLE = 40  # characters of a text that a line or a record shows
MAX_NAMED = 12  # unknown characters that a line names


@dataclass(frozen=True)
class TextScore:
    """log p of a text, character by character.

    Attributes:
        characters: in their order, with unknown ones.
        log_probs: log p in nats of each, given the known characters before it; None for an unknown
            one, which is left out. A character of several bytes has the sum of their log p.
        unknown: how often each unknown character occurs.
    """

    characters: str
    log_probs: list[float | None]
    unknown: Counter[str]

    @property
    def known(self) -> int:
        """The number of characters that have a probability."""
        return len(self.characters) - self.unknown.total()

    @property
    def log_prob(self) -> float:
        """log p of the known characters in nats."""
        return math.fsum(value for value in self.log_probs if value is not None)

    @property
    def bits_per_character(self) -> float | None:
        """−log₂ p per known character; None without one."""
        return -self.log_prob / self.known / math.log(2) if self.known else None

    @property
    def bits(self) -> list[float | None]:
        """The surprise −log₂ p of each character."""
        return [None if value is None else -value / math.log(2) for value in self.log_probs]


def score_text(run: LoadedRun, text: str) -> TextScore:
    """Return log p of each character of a text; characters unknown to the data are left out."""
    spec: DataSpec = run.spec
    known = [not spec.symbols or character in spec.symbols for character in text]
    unknown = Counter(c for c, is_known in zip(text, known, strict=True) if not is_known)
    # the tokens of each character: one, or the bytes that store it
    tokens = [
        tokens_of_character(spec, c) if is_known else []
        for c, is_known in zip(text, known, strict=True)
    ]
    x = torch.tensor([token for part in tokens for token in part], dtype=torch.long)
    if not len(x):
        return TextScore(text, [None] * len(text), unknown)
    with torch.no_grad():
        scored = run.model.token_log_probs(x[None].to(run.device.torch))[0].double().cpu()
    parts = scored.split([len(part) for part in tokens])
    log_probs = [
        part.sum().item() if is_known else None for part, is_known in zip(parts, known, strict=True)
    ]
    return TextScore(text, log_probs, unknown)


def tokens_of_character(spec: DataSpec, character: str) -> list[int]:
    """Return the tokens of a character; for data of bytes those that store it in UTF-8."""
    if spec.symbols:
        return spec.to_tokens(character)
    return list(character.encode("utf-8", "surrogateescape"))


def read_text_like_training_data(run: LoadedRun, path: Path) -> str:
    """Return the text of a file, decoded as the run's training text was.

    Raises:
        UserError: the file does not exist, is empty, or is not a text in that encoding.
    """
    if not path.is_file():
        raise UserError(f"input_file={path}: no such file; give the name of a text file")
    data = read_bytes(path)
    if not data:
        raise UserError(f"input_file={path} is empty")
    if not run.spec.symbols:
        return data.decode("utf-8", "surrogateescape")  # bytes as they are
    options = run.config.get("dataset", {})
    normalize = bool(options.get("normalize_newlines", True))
    reader = TextReader(str(options.get("encoding", "utf-8")), normalize)
    try:
        text = reader.decode(data)
    except UnreadableTextError as error:
        raise UserError(f"input_file={path} {error.explain(data)}") from error
    for note in reader.change_notes():
        print(note, file=sys.stderr)
    return text


def score_and_write_texts(
    run: LoadedRun,
    request: CommandRequest,
    texts: list[str],
    *,
    seed: int,
    input_file: Path | None = None,
    output_dir: str | None,
) -> dict[str, Any]:
    """Score texts, print log p of each, and write a picture, a CSV file and the record.

    Raises:
        UserError: the model does not score tokens, the data is not text, or no character of a text
            is known.
    """
    if run.spec.kind != "tokens":
        raise UserError(
            f"text= and input_file= are for models of text, but {run.name} on {run.dataset_name} "
            f"models {run.spec.kind}; leave them out to score its own data"
        )
    require_ability(run, "token_log_probs")
    scores = [score_text(run, text) for text in texts]
    for score in scores:
        if not score.known:
            raise UserError(
                f"the text {shorten(score.characters)!r} has no character that {run.name} was "
                f"trained on; they are {run.spec.symbols!r}"
            )
        print_wrapped(f"“{shorten(score.characters)}”: {describe_score(score)}")
        if score.unknown:
            print_wrapped(describe_unknown_characters(score))
    record = run_record_fields(run, seed) | {
        "input_file": None if input_file is None else str(input_file),
        "score": "log p in nats given the start of a window, by token_log_probs",
        "tag": "exact",
        "context": run.spec.dim,
        "texts": [score_as_record(score) for score in scores],
        "log_prob": math.fsum(score.log_prob for score in scores),
    }
    scored = [ScoredText(describe_score(score), score.characters, score.bits) for score in scores]
    caption = make_picture_caption("likelihood of a text", run, seed)
    files: dict[str, Writer] = {
        ".png": partial(save_picture_as_sheet, draw_scored_texts(scored), caption=caption),
        ".csv": partial(atomic_write, data=character_table_as_csv(scores)),
    }
    folder = common_output_folder([run], "likelihood", output_dir)
    write_and_print_output_files(request, folder, "text", record, files)
    return record


def describe_score(score: TextScore) -> str:
    """Return the total and the mean surprise of a text in words."""
    return (
        f"log p = {score.log_prob:.2f} nats, {score.known:,} characters, "
        f"{score.bits_per_character:.3f} bits per character"
    )


def describe_unknown_characters(score: TextScore) -> str:
    """Return a sentence that names the characters that were left out."""
    named = ", ".join(
        f"{character!r} ×{count}" for character, count in score.unknown.most_common(MAX_NAMED)
    )
    more = ", …" if len(score.unknown) > MAX_NAMED else ""
    number = score.unknown.total()
    plural = "s are" if number > 1 else " is"
    return (
        f"{number:,} character{plural} left out, because the training text does not have "
        f"{'them' if number > 1 else 'it'}: {named}{more}"
    )


def score_as_record(score: TextScore) -> dict[str, Any]:
    """Return the numbers of a text for the record."""
    return {
        "text": shorten(score.characters),
        "characters": score.known,
        "log_prob": score.log_prob,
        "bits_per_character": score.bits_per_character,
        "left_out": dict(score.unknown.most_common()),
    }


def shorten(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = make_printable(text.encode("utf-8", "replace").decode().replace("\n", " "))
    return line if len(line) <= MAX_TITLE else f"{line[:MAX_TITLE]}…"


def character_table_as_csv(scores: list[TextScore]) -> bytes:
    """Return a row for each character of each text: its log p, its surprise, and log p so far."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "position", "character", "log_prob", "bits", "log_prob_so_far"])
    for number, score in enumerate(scores):
        so_far = 0.0
        rows = zip(score.characters, score.log_probs, score.bits, strict=True)
        for position, (character, log_prob, bits) in enumerate(rows):
            so_far += log_prob or 0.0
            shown = character if character.isprintable() else ascii(character)[1:-1]
            known = ["", ""] if log_prob is None else [f"{log_prob:.9g}", f"{bits:.9g}"]
            writer.writerow([number, position, shown, *known, f"{so_far:.9g}"])
    return out.getvalue().encode("utf-8")
