"""Captions as data, text encoders, and a model of images given captions."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runner import run_here
from helpers.recipes import build_training_objects, compose_config
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from genlab.builders import factory
from genlab.data.captions import (
    CaptionedFolder,
    encode_captions_as_bytes,
    random_nonsense_templates,
)
from genlab.errors import UserError
from genlab.models.diffusion.networks import dit, unet
from genlab.models.diffusion.text2image import Text2Image
from genlab.nn.text_encoder import TextEncoder
from genlab.spec import Batch, DataSpec

TEXT = DataSpec((12,), kind="tokens", levels=0, vocab=256)
SPEC = DataSpec((1, 8, 8), num_classes=3, source=TEXT)
TINY = partial(
    unet, channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,), dropout=0.0
)
SMALL = ("dataset=captions", "backbone=unet_small", "device=cpu", "out=unused")


def tiny(**options) -> Text2Image:
    torch.manual_seed(0)
    return Text2Image(
        SPEC, backbone=TINY, timesteps=20, text_width=16, text_layers=1, text_heads=2, **options
    ).double()


def test_captions_use_all_templates_but_not_the_held_out_ones():
    dataset = factory.make_dataset(compose_config(*SMALL))
    captions_of_class = {}
    for batch, _ in zip(dataset.batches("train", 100, seed=0), range(20), strict=False):
        for row, y in zip(batch.cond, batch.y.tolist(), strict=True):
            captions_of_class.setdefault(y, set()).add(bytes(row[row > 0].tolist()).decode())
    for y, captions in captions_of_class.items():
        assert captions == {
            template.replace("{}", dataset.class_names[y]) for template in dataset.templates
        }
    assert not set(dataset.heldout_templates) & set(dataset.templates)
    first, again = (dataset.head("test", 50) for _ in range(2))
    assert torch.equal(first.cond, again.cond) and first.cond.dtype == torch.int64


def test_half_of_the_training_images_have_nonsense_captions_with_their_class():
    dataset = factory.make_dataset(
        compose_config(*SMALL, "dataset.nonsense_templates=50", "dataset.length=35")
    )
    known = {
        template.replace("{}", name)
        for template in dataset.templates
        for name in dataset.class_names
    }
    batch = next(iter(dataset.batches("train", 1000, seed=0)))
    captions = [bytes(row[row > 0].tolist()).decode() for row in batch.cond]
    assert all(
        dataset.class_names[y] in caption.split()
        for y, caption in zip(batch.y.tolist(), captions, strict=True)
    )
    made_up = {caption for caption in captions if caption not in known}
    assert 450 < sum(caption in made_up for caption in captions) < 550 and len(made_up) > 200
    shown = dataset.head("test", 100)
    assert all(
        bytes(row[row > 0].tolist()).decode() in known for row in shown.cond
    )  # evaluation uses real captions


def test_captioned_folder_reads_its_metadata(tmp_path):
    lines = []
    for i, text in enumerate(("a red square", "ein grünes Feld", "blue " * 40)):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = CaptionedFolder(path=str(tmp_path), validation=0, test=0, length=32)
    batch = dataset.head("train")
    grey = [int(x.mean() * 127.5 + 127.5 + 0.5) // 40 for x in batch.x]
    found = dict(
        zip(grey, (bytes(row[row > 0].tolist()).decode() for row in batch.cond), strict=True)
    )
    assert found[0] == "a red square" and found[1] == "ein grünes Feld" and len(found[2]) == 32
    assert dataset.spec.num_classes == 0 and dataset.spec.source.shape == (32,) and batch.y is None
    for text, words in (
        ("nonsense", "line 1"),
        (json.dumps({"file_name": "x.png", "text": ""}), "no file"),
    ):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            CaptionedFolder(path=str(tmp_path))


def test_one_metadata_file_names_the_folders_of_the_splits(tmp_path):
    lines = []
    for name in ("train/a", "train/b", "train/c", "test/a", "val/a"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(path)
        lines.append(json.dumps({"file_name": f"{name}.png", "text": name}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = CaptionedFolder(path=str(tmp_path))
    assert list(data.describe().splits.values()) == [3, 1, 1]
    assert bytes(data.head("test").cond[0].tolist()).startswith(b"test/a")
    assert "the folders that metadata.jsonl names are the splits" in data.notes
    whole = CaptionedFolder(path=str(tmp_path), split_folders=False, validation=0.0, test=0.0)
    assert list(whole.describe().splits.values()) == [5, 0, 0]


def write_captions(
    folder: Path, lines: list[dict], images: tuple[str, ...] = ("a", "b", "c")
) -> None:
    for i, name in enumerate(images):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(file)
    text = "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text("\ufeff" + text + "\r\n", newline="")


def test_lines_and_images_that_do_not_fit_are_counted(tmp_path):
    lines = [
        {"file_name": "a.png", "text": "one \u2028 line"},  # str.splitlines() would cut it
        {"file_name": "a.png", "text": "another caption"},
        {"file_name": "b.png", "text": "x" * 50},
        {"file_name": "b.png", "text": "x" * 50},
        {"file_name": "sub\\d.png", "text": "written on Windows"},
        {"file_name": "c.png", "text": None},
        {"file_name": "gone.png", "text": "no image"},
    ]
    write_captions(tmp_path, lines, ("a", "b", "c", "sub/d", "sub/e"))
    (tmp_path / "notes.txt").write_text("x")
    options = {"path": str(tmp_path), "validation": 0, "test": 0, "length": 32}
    data = CaptionedFolder(**options)
    assert data.size("train") == 4
    captions = {bytes(row[row > 0].tolist()).decode() for row in data.head("train").cond}
    assert captions == {"one \u2028 line", "another caption", "x" * 32, "written on Windows"}
    assert data.left_out.to_json() == {
        "repeated lines": {"count": 1, "examples": ["line 7: b.png"]},
        "empty captions": {"count": 1, "examples": ["line 11: c.png"]},
        "lines with no file of this name": {"count": 1, "examples": ["line 13: gone.png"]},
        "images without a caption": {"count": 1, "examples": ["sub/e.png"]},
        "unsupported suffix .txt": {"count": 1, "examples": ["notes.txt"]},
    }
    assert data.notes[0] == (
        "1 of 4 captions are truncated to dataset.length=32 bytes; the longest has 50"
    )
    assert "1 captions are of images that have another one too" in data.notes[1]
    with pytest.raises(UserError, match="line 13: no file"):
        CaptionedFolder(**options, strict=True)


def test_metadata_in_split_folders(tmp_path):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        write_captions(tmp_path / split, [{"file_name": f"{name}.png", "text": split}], (name,))
    data = CaptionedFolder(path=str(tmp_path), length=8)
    shown = {
        split: bytes(row[row > 0].tolist()).decode()
        for split in ("train", "validation", "test")
        for row in data.head(split).cond
    }
    assert shown == {"train": "train", "validation": "valid", "test": "test"}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "metadata.jsonl",
            b'{"file_name":"a.png","caption":"x"}',
            'no "text"; it has "file_name", ',
        ),
        ("metadata.jsonl", b'{"file_name":"a.png","text":["x","y"]}', '"text" is not a string'),
        ("metadata.jsonl", b'[{"file_name":"a.png","text":"x"}]', "split into lines"),
        ("metadata.jsonl", b"", "does not have a caption of an image"),
        (
            "metadata.jsonl",
            '{"file_name":"a.png","text":"Käse"}'.encode("latin-1"),
            "byte 0xE4 is not UTF-8; it is likely latin-1",
        ),
        ("metadata.csv", b"file_name,text\na.png,x\n", "metadata.csv has to be converted to it"),
        ("a.txt", b"a caption", "a.txt has to be converted to it"),
    ],
)
def test_captions_in_another_form_are_refused(name, data, words, tmp_path):
    write_captions(tmp_path, [])
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        CaptionedFolder(path=str(tmp_path))
    assert words in str(error.value)


def test_padding_does_not_change_the_encoding():
    encoder = TextEncoder(12, width=16, num_layers=2, num_heads=2).double().eval()
    short = encode_captions_as_bytes(["seven"], 5)
    long = encode_captions_as_bytes(["seven"], 12)
    a, there = encoder(short)
    b, also = encoder(long)
    torch.testing.assert_close(b[:, :6], a)
    assert there.all() and also.sum() == 6


def test_class_names_are_found_among_unseen_words_and_positions():
    dataset = factory.make_dataset(compose_config(*SMALL, "dataset.length=36"))
    torch.manual_seed(0)
    said, other = (
        torch.stack(
            [
                dataset.encode_class_captions(t)
                for t in random_nonsense_templates(n, 33, torch.Generator().manual_seed(n))
            ]
        )
        for n in (500, 100)
    )
    encoder = TextEncoder(36, width=32, num_layers=1, num_heads=2)
    query, head = nn.Linear(32, 1), nn.Linear(32, 10)
    parts = nn.ModuleList([encoder, query, head])
    adam = torch.optim.Adam(parts.parameters(), 3e-3)

    def classify_text(text):
        h, there = encoder(text)
        share = query(h).masked_fill(~there[..., None], -torch.inf).softmax(1)
        return head((share * h).sum(1))

    for _ in range(120):
        y = torch.randint(10, (64,))
        loss = cross_entropy(classify_text(said[torch.randint(len(said), (64,)), y]), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
    unseen = torch.stack(
        [dataset.encode_class_captions(template) for template in dataset.heldout_templates]
    )
    for texts, least in (
        (other, 0.95),
        (unseen, 0.95),
    ):  # only 0.6 with attention but without the convolution
        right = classify_text(texts.flatten(0, 1)).argmax(1) == torch.arange(10).repeat(len(texts))
        assert right.float().mean() >= least, right.float().mean()


def test_predictions_depend_on_captions_and_guidance_uses_the_empty_one():
    model = tiny().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    y = encode_captions_as_bytes(["one", "two"], 12)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64).expand(2, -1, -1, -1)
    at = {g: model.make_denoiser(y, g)(x, 5) for g in (0.0, 1.0, 4.0)}
    assert not torch.allclose(at[1.0][0], at[1.0][1]) and torch.allclose(at[0.0][0], at[0.0][1])
    empty = model.make_denoiser(torch.zeros_like(y), 1.0)(x, 5)
    torch.testing.assert_close(at[0.0], empty)


def test_every_parameter_gets_a_gradient():
    model = tiny()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    cond = encode_captions_as_bytes(["one", "two", "three"], 12).repeat(8, 1)
    model.loss(Batch(torch.randn(24, 1, 8, 8, dtype=torch.float64), None, cond))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.fixture(params=["clip", "t5"])
def pretrained_encoder(request, tmp_path):
    """A folder with a small random text encoder of transformers and a word tokenizer."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    if request.param == "clip":
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        config = transformers.CLIPTextConfig(
            vocab_size=20, max_position_embeddings=6, **sizes, bos_token_id=1, eos_token_id=2
        )
        model = transformers.CLIPTextModel(config)
    else:
        config = transformers.T5Config(
            vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
        model = transformers.T5EncoderModel(config)
    model.save_pretrained(tmp_path)
    words = {
        word: i
        for i, word in enumerate(
            ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "one", "two", "a", "handwritten", "digit")
        )
    }
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[BOS]", 1), ("[EOS]", 2)]
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=ends
    )
    special = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(tmp_path)
    return tmp_path, model.eval()


def test_pretrained_encoder_is_frozen_and_encodes_each_caption_once(
    pretrained_encoder, monkeypatch
):
    folder, theirs = pretrained_encoder
    torch.manual_seed(0)
    model = Text2Image(SPEC, backbone=TINY, timesteps=20, text_encoder=str(folder))
    encoder = model.network.encoder
    captions = ["one", "a handwritten two", "one", ""]
    vectors, there = encoder(encode_captions_as_bytes(captions, 30))
    assert there.sum(1).tolist() == [3, 5, 3, 2]  # with the tokens for beginning and end
    with torch.no_grad():
        alone = theirs(input_ids=torch.tensor([[1, 6, 7, 5, 2]])).last_hidden_state[0]
    torch.testing.assert_close(vectors[1], alone)
    monkeypatch.setattr(encoder, "encode_captions", None)  # all are cached
    again, _ = encoder(encode_captions_as_bytes(captions, 30))
    assert torch.equal(again, vectors)
    monkeypatch.undo()
    assert encoder(encode_captions_as_bytes(["a " * 10], 30))[1].sum() == (
        6 if folder.joinpath("config.json").read_text().count("clip") else 12
    )
    assert not any("encoder" in key for key in model.state_dict()) and not list(
        encoder.parameters()
    )
    assert copy.deepcopy(model).network.encoder is encoder
    model.double().loss(
        Batch(torch.randn(4, 1, 8, 8).double(), None, encode_captions_as_bytes(captions, 30))
    )["loss"].backward()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Text2Image(DataSpec((1, 8, 8))), "dataset=captions"),
        (lambda: Text2Image(SPEC, backbone=dit), "does not support text"),
        (lambda: Text2Image(SPEC, conditional=True), "conditional=false"),
        (lambda: Text2Image(SPEC, text_width=10, text_heads=4), "text_heads"),
        (
            lambda: Text2Image(SPEC, backbone=TINY, text_encoder="/nowhere"),
            "model.text_encoder=/nowhere",
        ),
        (lambda: encode_captions_as_bytes(["too long"], 3), "dataset.length=8"),
        (
            lambda: build_training_objects(*SMALL, "model=text2image", "dataset.class_names=[a,b]"),
            "dataset.class_names",
        ),
        (
            lambda: build_training_objects(*SMALL, "model=text2image", "dataset.templates=[digit]"),
            "{}",
        ),
    ],
)
def test_error_names_the_fix(act, words):
    with pytest.raises(UserError, match=words):
        act()


def test_prompts_work_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = (
        "model=text2image",
        "backbone=unet_small",
        "model.timesteps=4",
        "trainer.steps=2",
        "trainer.batch_size=8",
        "trainer.preview_every=0",
        "device=cpu",
        "out=run",
    )
    assert run_here("train", *train, cwd=tmp_path).code == 0
    asked = run_here(
        "sample", "run=run", "n=3", "prompt=[a seven,a handwritten one]", "device=cpu", cwd=tmp_path
    )
    assert asked.code == 0, asked.error
    (picture,) = (tmp_path / "run/samples").glob(
        "sample_step2_seed0_a-seven-a-handwritten-one*.png"
    )
    assert f"open: run/samples/{picture.name}" in asked.out
    found = run_here(
        "evaluate", "run=run", "n=20", "metrics=[prompt_accuracy]", "device=cpu", cwd=tmp_path
    )
    assert found.code == 0 and "heldout_prompt_accuracy" in found.out, found.error
    refused = run_here("sample", "run=run", "label=3", "device=cpu", cwd=tmp_path)
    assert refused.code and "classes" in refused.error
