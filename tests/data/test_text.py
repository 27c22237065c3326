"""Text datasets, likelihoods per token, and the commands that show text."""

from __future__ import annotations

import json
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runner import run_here

from genlab.data import text as source
from genlab.data.text import Shakespeare, Text
from genlab.errors import UserError
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure
from genlab.models.autoregressive.gpt_text import GPTText
from genlab.spec import DataSpec
from genlab.viz import item_pictures

WORDS = "".join(f"the {i}th of many words, né {i * i} — ß\n" for i in range(200))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


# --- the data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_windows_are_parts_of_the_file(file, unit):
    data = Text(path=str(file), unit=unit, length=20)
    whole = WORDS if unit == "characters" else WORDS.encode()
    show = data.spec.to_text if unit == "characters" else bytes
    end = int(len(whole) * 0.9)
    assert data.spec.vocab == (
        len(set(WORDS)) if unit == "characters" else 256
    ) and data.spec.shape == (20,)
    batch = next(data.batches("train", 64, seed=3))
    assert batch.x.dtype == torch.int64 and batch.x.shape == (64, 20) and batch.y is None
    assert data.size("train") == end - 19
    for row in batch.x.tolist():
        assert show(row) in whole[:end]
    held = torch.cat([batch.x for batch in data.batches("validation", 7, shuffle=False)]).tolist()
    joined = show(held[0]) + show(
        [token for row in held[1:] for token in row[1:]]
    )  # each overlaps the previous one by a token
    assert whole[end:].startswith(joined) and len(whole) - end - len(joined) < 19
    assert len(held) == data.size("validation") == data.size("test")
    assert data.raw_items_and_labels("validation")[0].tolist() == held


def test_an_epoch_starts_at_every_token_once(file):
    data = Text(path=str(file), length=20)
    epoch = next(data.batches("train", data.size("train"), seed=1)).x.tolist()
    every = data.raw_items_and_labels("train")[0].tolist()
    assert sorted(epoch) == sorted(every) and epoch != every


def test_a_batch_depends_only_on_its_number(file):
    data = Text(path=str(file), length=20)
    whole = [batch.x for batch in islice(data.batches("train", 8, seed=5), 6)]
    later = next(data.batches("train", 8, seed=5, start=5)).x
    assert torch.equal(whole[5], later) and not torch.equal(whole[5], whole[4])
    halves = [
        next(data.batches("train", 8, seed=5, start=5, shard=s, num_shards=2)).x for s in (0, 1)
    ]
    assert torch.equal(torch.cat(halves), later)
    assert not torch.equal(next(data.batches("train", 8, seed=6, start=5)).x, later)


def test_a_separate_test_part_comes_last(file):
    data = Text(path=str(file), length=10, validation=0.2, test=0.1)
    first = {
        split: data.spec.to_text(next(data.batches(split, 1, shuffle=False)).x[0].tolist())
        for split in ("validation", "test")
    }
    n = len(WORDS)
    assert (
        first["validation"] == WORDS[int(n * 0.7) :][:10]
        and abs(WORDS.rfind(first["test"]) - int(n * 0.9)) <= 1
    )


def test_spec_converts_text_to_tokens_and_back(file):
    for unit in ("characters", "bytes"):
        spec = Text(path=str(file), unit=unit).spec
        again = DataSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec and spec.is_discrete
        assert again.to_text(again.to_tokens("né — ß")) == "né — ß"
    with pytest.raises(UserError, match="does not have 'Qiu'"):
        Text(path=str(file)).spec.to_tokens("Quit")


def test_the_default_text_is_pythons_help_topics():
    data = Text()
    assert data.size("train") > 200_000 and "characters" in data.notes[0]
    assert "statement" in data.spec.to_text(data.splits["train"].x.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "absent.txt"}, "no such file"),
        ({"length": 10_000}, "dataset.length"),
        ({"validation": 0.9, "test": 0.2}, "dataset.validation"),
    ],
)
def test_errors_name_the_option_to_set(file, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Text(**({"path": str(file)} | options))


TEXT = "the cat sat — café\n" * 40


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (("\ufeff" + TEXT).encode(), "1 byte-order mark (U+FEFF) left out"),
        (TEXT.replace("\n", "\r\n").encode(), "40 Windows line ends (CR LF) are read as LF"),
        (TEXT.replace("\n", "\r").encode(), "40 line ends CR are read as LF"),
        (
            ("\ufeff" + TEXT + "\ufeff" + TEXT.replace("\n", "\r\n")).encode(),
            "2 byte-order marks (U+FEFF) left out",
        ),
        (TEXT.encode(), ""),
    ],
    ids=["BOM", "CRLF", "CR", "mixed", "plain"],
)
def test_line_ends_and_byte_order_marks_are_not_symbols(data, note, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    text = Text(path=str(path), length=10)
    assert text.spec.symbols == "".join(sorted(set(TEXT)))
    assert not note or note in text.notes
    assert text.facts == {
        "symbols": text.spec.symbols,
        "tokens": len(data.decode()) - sum(map(data.decode().count, ["\ufeff", "\r\n"])),
    }
    kept = Text(path=str(path), length=10, normalize_newlines=False)
    assert kept.spec.symbols == "".join(sorted(set(data.decode())))
    assert sum(len(part.x) for name, part in kept.splits.items() if name != "test") == len(
        data.decode()
    )


RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая по-своему.\n" * 9
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 9
CHINESE = (
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。\n" * 9
)


@pytest.mark.parametrize(
    ("text", "stored", "guess"),
    [
        (TEXT, "cp1252", "cp1252"),
        ("Käse, né à Zürich\n" * 40, "latin-1", "latin-1"),
        ("äöü\n" * 40, "latin-1", "latin-1"),
        (TEXT, "utf-16", "utf-16"),
        (TEXT, "utf-16-le", "utf-16-le"),
        (TEXT, "utf-16-be", "utf-16-be"),
        (TEXT, "utf-32", "utf-32"),
        ("plain ASCII\n" * 40, "utf-16-le", "utf-16-le"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (JAPANESE, "shift_jis", "shift_jis"),
        (CHINESE, "gb18030", "gb18030"),
    ],
)
def test_another_encoding_is_named_and_can_be_set(text, stored, guess, tmp_path):
    path = tmp_path / "words.txt"
    data = text.encode(stored)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"byte 0x\w\w at position") as error:
        Text(path=str(path), length=5)
    assert f"set dataset.encoding={guess};" in str(error.value)
    assert "dataset.unit=bytes" in str(error.value)
    assert Text(path=str(path), length=5, encoding=guess).spec.symbols == "".join(sorted(set(text)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"one\0two\n" * 9, "binary data, not a text: byte 0x00 at position 3"),
        (b"\x1f\x8b\x08\0rest", "compressed (gzip); unpack it first"),
        (b"PK\x03\x04rest", "ZIP archive"),
        (b"%PDF-1.4", "a PDF file; save it as plain text"),
        (RUSSIAN.encode() + b"\xff\n" + TEXT.encode(), "a part of the file is damaged"),
    ],
)
def test_files_that_are_not_texts_are_refused(data, words, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(words)):
        Text(path=str(path), length=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "utf8x"}, "dataset.encoding=utf8x: no such encoding (did you mean 'utf-8'?)"),
        ({"encoding": "rot13"}, "no such encoding"),
        ({"encoding": "cp1252", "unit": "bytes"}, "dataset.unit=characters"),
    ],
)
def test_encodings_are_checked(options, words, file):
    with pytest.raises(UserError, match=re.escape(words)):
        Text(path=str(file), **options)


def test_a_folder_of_texts_is_one_text(tmp_path):
    for name, data in {
        "chapter10.txt": b"ten",
        "chapter9.txt": b"nine",
        "part/notes.md": b"noted\n" * 30,
        "old.txt": "déjà".encode("latin-1"),
        "picture.png": b"\x89PNG\0\0",
        "empty.txt": b"",
        ".git/head": b"x",
    }.items():
        path = tmp_path / "book" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "book" / "gone.txt").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "book")
    for folder in ("book", "link"):
        text = Text(path=str(tmp_path / folder), length=4)
        whole = text.spec.to_text(text.splits["train"].x.tolist())
        assert whole.startswith("nine\nten\nnoted\n") and len(text.source_files) == 3
        assert text.left_out.to_json() == {
            "hidden": {"count": 1, "examples": [".git/head"]},
            "empty": {"count": 1, "examples": ["empty.txt"]},
            "not a file, or a broken link": {"count": 1, "examples": ["gone.txt"]},
            "not utf-8": {"count": 1, "examples": ["old.txt (likely latin-1)"]},
            "not a text": {"count": 1, "examples": ["picture.png"]},
        }
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "old.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(UserError, match=r"no text in .*set dataset\.encoding=latin-1"):
        Text(path=str(tmp_path / "none"))


def test_names_of_files_give_the_splits(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(f"{split} " * 20)
    text = Text(path=str(tmp_path), length=4)
    shown = {
        split: text.spec.to_text(part.x.tolist())[:5].strip() for split, part in text.splits.items()
    }
    assert shown == {"train": "train", "validation": "valid", "test": "test"}


def test_decomposed_letters_are_noted(tmp_path):
    (tmp_path / "nfd.txt").write_text("cafe\u0301\n" * 40)
    text = Text(path=str(tmp_path / "nfd.txt"), length=5)
    assert "\u0301" in text.spec.symbols
    assert any(note.startswith("40 accents are symbols of their own") for note in text.notes)


@pytest.mark.parametrize(
    ("line", "is_json"), [('{"text": "caf\\u00e9"}', True), ("[1] a list {of} notes", False)]
)
def test_json_is_noted(line, is_json, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(f"{line}\n" * 20)
    assert any("the text is JSON" in note for note in Text(path=str(path)).notes) == is_json


def test_an_old_run_keeps_its_symbols(genlab, tmp_path):
    """Runs without data.json read their text as they did before line ends were normalized."""
    (tmp_path / "dos.txt").write_bytes(("\ufeff" + TEXT.replace("\n", "\r\n")).encode())
    small = ("model.num_layers=1", "model.num_heads=1", "model.width=8", "dataset.length=9")
    options = ("model=gpt_text", "dataset.path=dos.txt", "trainer.steps=1", "device=cpu", *small)
    assert genlab("train", *options, "dataset.normalize_newlines=false", "out=run").code == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert "\ufeff" in data["facts"]["symbols"]
    (tmp_path / "run" / "data.json").unlink()
    config = tmp_path / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "normalize_newlines" not in line))
    for command in (["evaluate", "n=4"], ["complete", "n=3", "prompt=the"]):
        assert genlab(*command, "run=run", "device=cpu").code == 0
    assert genlab("train", "resume=run", "trainer.steps=2", "device=cpu").code == 0


def test_another_text_has_the_symbols_of_the_run(file):
    text = Text(path=str(file), length=5)
    symbols = text.spec.symbols + "Ω"
    before = text.spec.to_text(text.splits["train"].x.tolist())
    text.renumber_symbols("Ω" + text.spec.symbols)
    assert text.spec.vocab == len(symbols)
    assert text.spec.to_text(text.splits["train"].x.tolist()) == before
    with pytest.raises(UserError, match="has the characters 'ß'"):
        Text(path=str(file), length=5).renumber_symbols(symbols.replace("ß", ""))


def test_text_that_is_not_utf8_is_read_as_bytes(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(bytes([228, 246, 10]) * 100)
    with pytest.raises(UserError, match=re.escape("dataset.unit=bytes")):
        Text(path=str(path), length=5)
    assert next(
        Text(path=str(path), unit="bytes", length=3).batches("validation", 1, shuffle=False)
    ).x.tolist() == [[228, 246, 10]]


def test_a_split_too_short_for_a_window_says_so(file):
    data = Text(path=str(file), length=20, validation=0.001)
    with pytest.raises(UserError, match=r"dataset\.validation=0\.001"):
        data.head("validation")


def test_shakespeare_is_downloaded_and_checked(tmp_path, monkeypatch):
    origin = tmp_path / "origin.txt"
    origin.write_text(WORDS)
    monkeypatch.setattr(source, "SHAKESPEARE_URL", origin.as_uri())
    with pytest.raises(UserError, match="SHA-256"):
        Shakespeare(root=str(tmp_path))
    assert not (tmp_path / "tinyshakespeare").exists()
    with pytest.raises(UserError, match=r"dataset\.download=true"):
        Shakespeare(root=str(tmp_path), download=False)
    monkeypatch.setattr(
        source, "SHAKESPEARE_SHA256", source.hashlib.sha256(WORDS.encode()).hexdigest()
    )
    assert Shakespeare(root=str(tmp_path)).spec.vocab == len(set(WORDS))
    origin.unlink()
    assert Shakespeare(root=str(tmp_path)).size("train")  # no download needed


def test_shakespeare_is_split_as_in_nanogpt():
    root = os.environ.get("GENLAB_DATA")
    if not root or not Path(root, "tinyshakespeare").exists():
        pytest.skip("needs tinyshakespeare in the folder that GENLAB_DATA names")
    data = Shakespeare(root=root, length=65)
    assert (data.spec.vocab, len(data.splits["train"].x), len(data.splits["validation"].x)) == (
        65,
        1_003_854,
        111_540,
    )
    assert data.size("validation") == 111_539 // 64


# --- metrics --------------------------------------------------------------------------------------


def test_nats_per_token_leave_out_the_first(file):
    data = Text(path=str(file), length=20)
    model = GPTText(data.spec, num_layers=1, num_heads=1, width=8).eval()
    torch.nn.init.normal_(model.decoder.tokens.weight)
    rows = {
        row.name: row
        for row in measure(
            MetricContext(data, Settings(split="validation", n=10_000), model=model)
        )["likelihood"]
    }
    assert list(rows) == ["nll", "nats_per_token", "bits_per_token"]
    x = data.head("validation").x
    each = model.decoder.token_log_probs(x, model.start_tokens(len(x)))  # (N, 20)
    assert rows["nll"].value == pytest.approx(-each.sum(1).mean().item(), rel=1e-5)
    assert rows["nats_per_token"].value == pytest.approx(-each[:, 1:].mean().item(), rel=1e-5)
    assert rows["bits_per_token"].value == pytest.approx(rows["nats_per_token"].value / np.log(2))
    assert rows["nats_per_token"].conditions["n"] == data.size("validation")


# --- commands -------------------------------------------------------------------------------------


def test_text_is_written_as_text(tmp_path):
    spec = DataSpec((4,), kind="tokens", levels=0, vocab=3, symbols="ab\n")
    x = torch.tensor([[0, 1, 2, 0], [1, 1, 1, 1]])
    image = item_pictures.save_items_as_sheet(x, spec, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists() and (tmp_path / "x.txt").read_text().splitlines() == [
        "ab",
        "a",
        "-" * 100,
        "bbbb",
    ]
    assert image.ndim == 3 and image.std() > 10
    other = item_pictures.render_items_as_picture(x[:1], spec)
    assert other.grid_without_names.shape[0] < image.shape[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("text")
    small = (
        "model.num_layers=1",
        "model.num_heads=2",
        "model.width=16",
        "trainer.batch_size=4",
        "device=cpu",
        "out=run",
    )
    result = run_here(
        "train", "model=gpt_text", "trainer.steps=2", "trainer.preview_every=1", *small, cwd=cwd
    )
    assert result.code == 0, result.err
    return cwd / "run"


def test_train_and_sample_write_text(run, genlab):
    assert len((run / "samples" / "step_000000001.txt").read_text()) > 8 * 65
    assert len((run / "reals.txt").read_text()) > 8 * 65
    result = genlab("sample", f"run={run}", "n=3")
    paths = {path.suffix: path for path in map(Path, result.out.replace("open: ", "").split())}
    text, arrays = paths[".txt"], paths[".npz"]
    assert (
        paths[".png"].exists()
        and np.load(arrays)["x"].shape == (3, 65)
        and np.load(arrays)["x"].dtype == np.int64
    )
    assert text.read_text().count("-" * 100) == 2


def test_complete_continues_a_prompt(run, genlab):
    ask = (
        "complete",
        f"run={run}",
        "prompt=\"The 'if' statement\"",
        "n=100",
        "draws=2",
        "top_p=0.9",
        "temperature=0.7",
    )
    result = genlab(*ask, "seed=1")
    assert result.code == 0, result.err
    path = Path(result.out.strip().splitlines()[-1])
    record = json.loads(path.with_suffix(".json").read_text())
    assert (
        path.read_text() in result.out and record["top_p"] == 0.9 and len(set(record["texts"])) == 2
    )
    assert [len(text) - len("The 'if' statement") for text in record["texts"]] == [100, 100]
    assert all(text.startswith("The 'if' statement") for text in record["texts"])
    again = genlab(*ask, "seed=1")
    assert again.out == result.out and genlab(*ask, "seed=2").out != result.out
    assert "'ж'" in genlab("complete", f"run={run}", 'prompt="ж"').error
    assert genlab("complete", f"run={run}", "prompt=1605", "n=5").out.startswith("1605")


def test_complete_refuses_image_models(train_run, genlab):
    assert "gpt_text" in genlab("complete", f"run={train_run('model=vae')}").error


def test_evaluate_and_info_of_a_text_model(run, genlab):
    result = genlab("evaluate", f"run={run}", "n=4")
    assert (
        result.code == 0
        and "nats_per_token" in result.out
        and list((run / "evaluation").glob("*_samples.png"))
    )
    assert f"genlab complete run={run}" in genlab("info", f"run={run}").out


def test_plan_describes_the_tokens(genlab, file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    small = (
        "model.num_layers=1",
        "model.num_heads=1",
        "model.width=8",
        "trainer.batch_size=2",
        "device=cpu",
    )
    result = genlab("plan", "model=gpt_text", f"dataset.path={file}", "dataset.length=9", *small)
    assert "9 tokens, 29 different, no classes" in result.out
