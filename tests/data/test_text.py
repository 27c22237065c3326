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
from genlab.viz import image_grids

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
    assert data.raw_arrays("validation")[0].tolist() == held


def test_an_epoch_starts_at_every_token_once(file):
    data = Text(path=str(file), length=20)
    epoch = next(data.batches("train", data.size("train"), seed=1)).x.tolist()
    every = data.raw_arrays("train")[0].tolist()
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
    assert data.size("train") > 200_000 and "characters" in data.report()[0]
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
    image = image_grids.save_items(x, spec, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists() and (tmp_path / "x.txt").read_text().splitlines() == [
        "ab",
        "a",
        "-" * 100,
        "bbbb",
    ]
    assert image.ndim == 3 and image.std() > 10
    other = image_grids.render_items(x[:1], spec)
    assert other.shape[0] < image.shape[0]


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
    text, arrays = map(Path, result.out.split())
    assert (
        text.suffix == ".txt"
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
        and (run / "evaluation" / "samples.png").exists()
    )
    assert f"genlab complete run={run}" in genlab("info", f"run={run}").out


def test_plan_describes_the_tokens(genlab, file):
    small = (
        "model.num_layers=1",
        "model.num_heads=1",
        "model.width=8",
        "trainer.batch_size=2",
        "device=cpu",
    )
    result = genlab("plan", "model=gpt_text", f"dataset.path={file}", "dataset.length=9", *small)
    assert "9 tokens, 29 different, no classes" in result.out
