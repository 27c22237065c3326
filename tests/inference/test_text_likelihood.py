"""genlab likelihood text=: log p of one's own texts, character by character."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.builders import entrypoints
from genlab.cli.hydra_args import quote_special_value
from genlab.inference.text_likelihood import score_text
from genlab.models.autoregressive.gpt_text import GPTText
from genlab.spec import DataSpec
from genlab.viz.surprise_text import (
    COLUMNS,
    MAX_BITS,
    SHADES,
    ScoredText,
    draw_scored_texts,
    shade,
    wrap_characters,
)

GPT = ("model=gpt_text", "model.num_layers=1", "model.num_heads=2", "model.width=8")
SMALL = (*GPT, "dataset.length=9")


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


def gpt(context: int, vocab: int = 5) -> GPTText:
    """Return a model with random weights of a size at which they matter."""
    spec = DataSpec((context,), kind="tokens", levels=0, vocab=vocab, symbols="abcde"[:vocab])
    model = GPTText(spec, num_layers=2, num_heads=2, width=8).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model


def test_the_tokens_of_a_window_sum_to_its_log_prob():
    model = gpt(7)
    x = torch.randint(5, (4, 7))
    scored = model.token_log_probs(x)
    torch.testing.assert_close(scored.sum(1), model.log_prob(x), rtol=1e-14, atol=0)
    # each is a distribution over the next token
    probs = [
        model.token_log_probs(torch.cat([x[:, :3], torch.full((4, 1), k)], 1))[:, 3].exp()
        for k in range(5)
    ]
    torch.testing.assert_close(torch.stack(probs).sum(0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 4, 5, 13, 30])
def test_a_long_text_is_scored_under_the_distribution_that_draws_it(context, length, monkeypatch):
    monkeypatch.setattr("genlab.models.autoregressive.gpt.WINDOWS_PER_BATCH", 3)
    model, drawn = gpt(context), []
    x = torch.randint(5, (2, length))

    def take_next(logits):  # the window that `extend` uses for each token
        t = len(drawn)
        drawn.append(logits.log_softmax(-1).gather(1, x[:, t : t + 1])[:, 0])
        return x[:, t]

    model.decoder.extend(x[:, :0], length, model.start_tokens(2), take_next)
    torch.testing.assert_close(
        model.token_log_probs(x), torch.stack(drawn, 1), rtol=1e-12, atol=1e-12
    )


def test_unknown_characters_are_left_out_and_counted():
    model = gpt(6)
    run = type(
        "Run", (), {"model": model, "spec": model.spec, "device": type("D", (), {"torch": "cpu"})}
    )
    score = score_text(run, "abxcxé")
    expected = model.token_log_probs(torch.tensor([[0, 1, 2]]))[0]
    assert [score.log_probs[i] for i in (0, 1, 3)] == pytest.approx(expected.tolist(), rel=1e-14)
    assert [score.log_probs[i] for i in (2, 4, 5)] == [None] * 3
    assert score.known == 3 and score.unknown == {"x": 2, "é": 1}
    assert score.log_prob == pytest.approx(expected.sum().item(), rel=1e-14)
    assert score.bits_per_character == pytest.approx(-expected.sum().item() / 3 / math.log(2))
    # of bytes, a character has the sum of its bytes
    bytes_spec = replace(model.spec, vocab=256, symbols="")
    model = GPTText(bytes_spec, num_layers=1, num_heads=1, width=4).double().eval()
    run.model, run.spec = model, bytes_spec
    found = score_text(run, "né")
    of_bytes = model.token_log_probs(torch.tensor([list("né".encode())]))[0]
    assert found.log_probs == pytest.approx([of_bytes[0].item(), of_bytes[1:].sum().item()])


def test_texts_and_files_are_scored_and_written(genlab, train_run, tmp_path):
    run = train_run(*SMALL)
    out = genlab(
        "likelihood", f"run={run}", "device=cpu", "output_dir=here", "text=If 1, then: 2 €."
    ).out
    assert "15 characters" in out and "'€' ×1" in out
    (record_file,), (table,) = tmp_path.glob("here/*.json"), tmp_path.glob("here/*.csv")
    record = json.loads(record_file.read_text())
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert "".join(row["character"] for row in rows) == "If 1, then: 2 €."
    log_probs = [float(row["log_prob"]) for row in rows if row["log_prob"]]
    assert len(log_probs) == record["texts"][0]["characters"] == 15
    assert sum(log_probs) == pytest.approx(record["log_prob"], rel=1e-6)
    assert record["texts"][0]["left_out"] == {"€": 1} and record["tag"] == "exact"
    (tmp_path / "own.txt").write_bytes(b"If 1, then: 2 .\r\n")
    command = ("likelihood", f"run={run}", "device=cpu", "output_dir=there")
    said = genlab(*command, "input_file=own.txt")
    assert "CR LF" in said.err
    (file_record,) = (json.loads(p.read_text()) for p in tmp_path.glob("there/*.json"))
    assert file_record["texts"][0]["characters"] == 16  # with the line end
    several = genlab("likelihood", f"run={run}", "device=cpu", "text=[a b,1605]").out
    assert several.count("bits per character") == 2


REFUSED = [
    (SMALL, "text=a input_file=b.txt", "not both"),
    (SMALL, "text=a split=train", "split=train has no effect"),
    (SMALL, "input_file=b.txt", "no such file"),
    (SMALL, "text=€", "no character that gpt_text was trained on"),
    (
        ("model=realnvp_points", "model.num_couplings=2", "dataset.n=1000"),
        "text=a",
        "models points",
    ),
]


@pytest.mark.parametrize(("recipe", "words", "said"), REFUSED, ids=[r[1] for r in REFUSED])
def test_refusals_name_the_fix(recipe, words, said, genlab, train_run):
    run = train_run(*recipe)
    assert said in genlab("likelihood", f"run={run}", "device=cpu", *words.split()).error


@pytest.mark.parametrize("value", ["To be, or not: to be", "a,b", "it's", "{x}", "1,605"])
def test_commas_and_colons_of_a_text_need_no_quotes(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for option in ("text", "prompt"):
        quoted = quote_special_value(f"{option}={value}")
        assert OverridesParser.create().parse_override(quoted).value() == value
    assert quote_special_value("text=[a,b]") == "text=[a,b]"


# --- the picture ----------------------------------------------------------------------------------


def test_lines_break_at_spaces_and_line_ends():
    text = "one two\n" + "word " * 30 + "x" * (COLUMNS + 5)
    lines = ["".join(text[a:b]) for a, b in wrap_characters(list(text))]
    assert "".join(lines) == text and max(map(len, lines)) <= COLUMNS
    assert lines[0] == "one two\n" and all(line.endswith(" ") for line in lines[1:3])


def test_shades_follow_the_surprise():
    assert shade(0) == SHADES[0] and shade(MAX_BITS) == shade(99) == SHADES[-1]
    assert shade(MAX_BITS / 4) == SHADES[1]
    light = [sum(shade(bits)) for bits in np.linspace(0, MAX_BITS, 50)]
    assert light == sorted(light, reverse=True)
    picture = draw_scored_texts([ScoredText("", ["a", "é", "中"], [MAX_BITS, None, 0.0])])
    pixels = picture.images[0].reshape(-1, 3)
    assert (pixels == SHADES[-1]).all(1).sum() > 300  # the cell of the first
    assert isinstance(Image.fromarray(picture.images[0]), Image.Image) and not picture.note
    long = draw_scored_texts([ScoredText("", ["a\n"[i % 2] for i in range(200)], [1.0] * 200)])
    assert long.note == "the first 60 of 200 characters"
