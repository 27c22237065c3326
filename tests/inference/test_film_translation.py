"""translate, colorize and superres of a film: frames, times and temporal consistency."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from genlab.builders import entrypoints
from genlab.commands.superres import superres
from genlab.commands.translate import translate
from genlab.data.films import Film, read_film, write_film_as_gif
from genlab.errors import UserError
from genlab.inference.film_translation import measure_steadiness
from genlab.model import GenerativeModel

COLOR = ("dataset@dataset.base=fake", "dataset.base.shape=[3,8,8]")
RUNS = {
    "gray": ("model=pix2pix", "model.width=2", "dataset.operator=noise"),
    "color": ("model=pix2pix", "model.width=2", *COLOR, "dataset.operator=noise"),
    "superres": ("model=srresnet", "model.width=4", "model.num_blocks=1", "preprocess.size=16"),
}
TIMES = [40, 100, 210, 30, 70]


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


class FunctionTranslator(GenerativeModel):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        return self.function(cond)


def run_of(train_run, name: str, function):
    run = load(train_run(*RUNS[name]))
    return replace(run, model=FunctionTranslator(function), open_data=lambda: run.dataset)


def film(channels: int, colors: int = 200, size: tuple[int, int] = (11, 14)) -> Film:
    """Return noise whose first columns never change."""
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (colors, channels))
    frames = palette[random.integers(0, colors, (len(TIMES), *size))].astype(np.uint8)
    frames[:, :, :4] = frames[0, :, :4]
    return Film(torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), TIMES, 3)


@pytest.mark.parametrize(("name", "channels"), [("gray", 1), ("color", 3)])
def test_an_identity_translator_returns_the_film(name, channels, train_run, tmp_path):
    source = film(channels)
    write_film_as_gif(source, tmp_path / "in.gif")
    run = run_of(train_run, name, lambda cond: cond)
    record = translate(run, input_file=str(tmp_path / "in.gif"), output_dir=str(tmp_path / "out"))
    found = read_film(next((tmp_path / "out").glob("*.gif")), channels, "input_file")
    assert torch.equal(found.frames, source.frames)
    assert (found.durations_ms, found.loop) == (TIMES, 3) == (record["durations_ms"], 3)
    assert record["n"] == 5 and record["seconds"] == pytest.approx(0.45)
    assert record["change_ratio"] == pytest.approx(1) and record["still_change"] == 0
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert written == {".gif", ".png", ".json", ".npz"}
    for picture in (tmp_path / "out").glob("*.png"):
        assert np.ptp(np.asarray(Image.open(picture))) > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colors", [2, 256])
def test_frames_of_few_colors_are_stored_exactly(channels, colors, tmp_path):
    source = film(channels, colors)
    write_film_as_gif(source, tmp_path / "film.gif")
    assert torch.equal(read_film(tmp_path / "film.gif", channels, "x").frames, source.frames)
    many = Film(torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8), [50, 60], None)
    write_film_as_gif(many, tmp_path / "many.gif")  # 1,600 colors in a palette of 256
    found = read_film(tmp_path / "many.gif", 3, "x")
    assert found.durations_ms == [50, 60] and found.loop is None
    assert (found.frames.double() - many.frames.double()).abs().mean() < 20


@pytest.mark.parametrize("suffix", ["webp", "png", "tiff"])
def test_films_of_other_formats_are_read(suffix, tmp_path):
    source = film(3)
    pages = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in source.frames]
    options = {"lossless": True} if suffix == "webp" else {}
    if suffix != "tiff":
        options["duration"] = TIMES
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:], **options)
    found = read_film(tmp_path / f"a.{suffix}", 3, "x")
    assert torch.equal(found.frames, source.frames)
    assert found.durations_ms == (TIMES if suffix != "tiff" else [100] * 5)
    gray = read_film(tmp_path / f"a.{suffix}", 1, "x").frames
    assert gray.shape == (5, 1, 11, 14)


def test_steadiness_matches_its_definition():
    random = np.random.default_rng(1)
    x = random.integers(0, 256, (4, 3, 5, 6)).astype(np.uint8)
    y = random.integers(0, 256, (4, 1, 10, 12)).astype(np.uint8)
    x[1:, :, :2] = x[0, :, :2]
    found = measure_steadiness(torch.from_numpy(x), torch.from_numpy(y))
    gray = {"source": x.astype(float).mean(1), "output": y.astype(float).mean(1)}
    relative = {
        name: [np.abs(v[t + 1] - v[t]).mean() / v.std() for t in range(3)]
        for name, v in gray.items()
    }
    for name, values in relative.items():
        assert found["change_by_frame"][name] == pytest.approx(values, rel=1e-12)
    assert found["change_ratio"] == pytest.approx(
        sum(relative["output"]) / sum(relative["source"]), rel=1e-12
    )
    assert found["still_fraction"] == pytest.approx(0.4)
    still = np.abs(np.diff(gray["output"], axis=0))[:, :4].mean()  # twice as high
    assert found["still_change"] == pytest.approx(still, rel=1e-12)
    constant = measure_steadiness(
        torch.from_numpy(x[:1]).repeat(3, 1, 1, 1), torch.zeros(3, 1, 2, 2)
    )
    assert constant["change_ratio"] is None and constant["still_change"] == 0


def test_flicker_is_measured_and_shared_noise_does_not_flicker(train_run, tmp_path):
    write_film_as_gif(film(1), tmp_path / "in.gif")
    calls = []

    def flicker(cond):
        calls.append(cond)
        return (cond * 0.5 + (0.2 if len(calls) % 2 else -0.2)).clamp(-1, 1)

    path = str(tmp_path / "in.gif")
    bright = translate(
        run_of(train_run, "gray", flicker), input_file=path, output_dir=str(tmp_path)
    )
    assert bright["still_change"] == pytest.approx(0.4 / 2 * 255, abs=1)
    assert bright["change_ratio"] > 1.1
    half = translate(
        run_of(train_run, "gray", lambda cond: cond * 0.5),
        input_file=path,
        output_dir=str(tmp_path),
    )
    assert half["change_ratio"] == pytest.approx(1, abs=0.01)  # less contrast is no steadiness
    noisy = translate(
        run_of(train_run, "gray", lambda cond: cond / 2 + torch.rand_like(cond) / 2),
        input_file=path,
        output_dir=str(tmp_path),
    )
    assert noisy["still_change"] == 0


def test_superres_enlarges_a_film(train_run, tmp_path):
    source = film(1)
    write_film_as_gif(source, tmp_path / "small.gif")
    run = run_of(train_run, "superres", lambda cond: interpolate(cond, scale_factor=2))
    record = superres(run, input_file=str(tmp_path / "small.gif"), output_dir=str(tmp_path / "out"))
    (large,) = (tmp_path / "out").glob("superres_small*.gif")
    found = read_film(large, 1, "x")
    assert torch.equal(found.frames, source.frames.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert record["still_change"] == 0 and record["change_ratio"] == pytest.approx(1)
    saved = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert saved["durations_ms"] == TIMES and saved["task"] == "superres"


def test_refusals_name_the_fix(train_run, tmp_path, genlab):
    run = run_of(train_run, "gray", lambda cond: cond)

    def error(name: str, **options) -> str:
        with pytest.raises(UserError) as caught:
            translate(run, input_file=str(tmp_path / name), output_dir=str(tmp_path), **options)
        return str(caught.value)

    assert "no such file" in error("missing.gif")
    assert "not both" in error("missing.gif", input_dir=str(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    assert "has one image; for single images give input_dir=" in error("one.png")
    write_film_as_gif(film(1), tmp_path / "film.gif")
    data = (tmp_path / "film.gif").read_bytes()
    (tmp_path / "half.gif").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.gif").write_text("not a film")
    assert "half.gif is unreadable" in error("half.gif")
    assert "text.gif is unreadable" in error("text.gif")
    command = ("translate", f"run={train_run(*RUNS['gray'])}", "device=cpu", "input_file=film.gif")
    assert "n=3 has no effect: every frame" in genlab(*command, "n=3").error
    ddpm = train_run("model=ddpm_points", "dataset.n=1000")
    assert genlab("translate", f"run={ddpm}", "device=cpu", "input_file=film.gif").code != 0
