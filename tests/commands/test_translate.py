"""The commands that ask a translator: translate, colorize, superres, forecast, and denoise and inpaint for models trained so."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from genlab.builders import entrypoints
from genlab.commands.denoise import denoise
from genlab.commands.evaluate import evaluate
from genlab.commands.forecast import ahead, forecast
from genlab.commands.inpaint import inpaint
from genlab.commands.train import preview
from genlab.commands.translate import superres, translate
from genlab.errors import UserError
from genlab.inference import corruptions, queries, requirements
from genlab.metrics import Settings, measure, psnr_ssim
from genlab.metrics.context import Subject
from genlab.metrics.energy_distance import energy_distance
from genlab.metrics.frechet import frechet_distance
from genlab.metrics.kid_mmd import kernel_distance
from genlab.metrics.paired_translation import agreement, guesses, why_no_lpips
from genlab.spec import Batch, Spec

FAKE = ("dataset@dataset.of=fake", "dataset.of.shape=[3,8,8]")
RUNS = {  # a small one for every task
    "colorize": ("model=pix2pix", "model.width=2", *FAKE, "dataset.operator=grey"),
    "denoise": ("model=pix2pix", "model.width=2", "dataset.operator=noise", "dataset.sigma=0.2"),
    "inpaint": ("model=pix2pix", "model.width=2", "dataset.operator=mask"),
    "superres": ("model=srresnet", "model.width=4", "model.blocks=1", "prepare.size=16"),
    "forecast": ("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial=0"),
}


@cache
def loaded(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


class Stand(nn.Module):
    """A translator that is a function."""

    def __init__(self, function, multiple: int = 1) -> None:
        super().__init__()
        self.function, self.multiple, self.weight = function, multiple, nn.Parameter(torch.zeros(1))

    def translate(self, cond: torch.Tensor) -> torch.Tensor:
        return self.function(cond)


def standing(run, function, **options):
    """Return a run whose model is the function."""
    return replace(run, model=Stand(function, **options), open_data=lambda: run.dataset)


def png(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.astype(np.uint8)).save(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return 128 + 100 * np.sin(rows / 3) * np.cos(columns / 4)


# --- every task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", RUNS)
def test_a_task_is_asked_by_its_name_and_by_no_other(task, genlab, trained, tmp_path):
    run = trained(*RUNS[task])
    few = "films=3" if task == "forecast" else "n=3"
    result = genlab(task, f"run={run}", "device=cpu", few, "seed=2", "out=made")
    assert result.code == 0, result.err
    written = sorted((tmp_path / "made").iterdir())
    assert {path.suffix for path in written} >= {".png", ".json", ".npz"}
    (record,) = (json.loads(path.read_text()) for path in written if path.suffix == ".json")
    assert any(
        isinstance(value, dict) and value.get("value") is not None for value in record.values()
    )
    other = "superres" if task == "colorize" else "colorize"
    assert f"task={task}" in genlab(other, f"run={run}", "device=cpu").error
    fitting = requirements.commands(loaded(run))
    assert task in fitting and "translate" in fitting and other not in fitting


def test_a_model_that_does_not_translate_names_those_that_do(genlab, trained):
    run = trained("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5")
    assert "srresnet" in genlab("superres", f"run={run}", "device=cpu").error


def test_a_translator_shows_source_output_and_truth_while_it_trains(trained, tmp_path):
    run = loaded(trained(*RUNS["superres"]))
    asked = []
    model = Stand(lambda cond: asked.append(cond) or interpolate(cond, scale_factor=2))
    folder = type("Folder", (), {"samples": tmp_path})()
    image = preview(run.dataset, folder, type("Trainer", (), {"at": 7})(), model)
    assert np.array_equal(image, np.asarray(Image.open(tmp_path / "step_000000007.png")))
    assert torch.equal(asked[0], run.dataset.take("validation", 10).cond)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_outputs(trained, tmp_path):
    run = standing(
        loaded(trained(*RUNS["superres"])),
        lambda cond: interpolate(cond, scale_factor=2).clamp(-1, 1),
    )
    record = superres(run, n=6, seed=1, out=str(tmp_path))
    held, _ = queries.items(run, "test", 6, 1)
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        assert np.array_equal(found["x"], held.x) and np.array_equal(found["source"], held.cond)
        made = torch.from_numpy(found["output"])
    torch.testing.assert_close(made, interpolate(held.cond, scale_factor=2))
    to_bytes = lambda x: ((x + 1) / 2 * 255).round()  # noqa: E731
    error = (to_bytes(made) - to_bytes(held.x)).double().square().mean((1, 2, 3))
    assert record["psnr_db"]["value"] == pytest.approx(
        (10 * torch.log10(255**2 / error)).mean().item(), rel=1e-6
    )
    inner = psnr_ssim.psnr(to_bytes(made), to_bytes(held.x), crop=2).mean().item()
    assert record["psnr_luminance_db"]["value"] == pytest.approx(inner, rel=1e-6)
    bicubic = psnr_ssim.bicubic(to_bytes(held.cond).byte(), (16, 16))
    theirs = psnr_ssim.ssim(bicubic, to_bytes(held.x).byte(), crop=2).mean().item()
    assert record["ssim_luminance_of_bicubic"]["value"] == pytest.approx(theirs, rel=1e-6)
    assert "LPIPS needs" in record["lpips"]


def test_agreement_is_of_all_channels_and_finite_for_equal_images():
    spec = Spec(
        (3, 12, 12), range=(0.0, 1.0), source=Spec((3, 12, 12), range=(0.0, 1.0)), task="translate"
    )
    x = torch.randint(0, 256, (4, 3, 12, 12)) / 255
    y = x.clone()
    y[0, 2, 0, 0] = 1 - x[0, 2, 0, 0].round()  # blue alone differs
    found = agreement(x, y, spec)
    assert set(found) == {"psnr", "ssim"} and why_no_lpips(spec)
    assert found["psnr"][1:].tolist() == pytest.approx([10 * np.log10(255**2 * 432)] * 3)
    off = round(255 * abs(x - y)[0].max().item())
    assert found["psnr"][0].item() == pytest.approx(10 * np.log10(255**2 * 432 / off**2))
    grey = torch.stack(
        [psnr_ssim.ssim(*((z[:1, c : c + 1] * 255).round() for z in (x, y))) for c in range(3)]
    )
    assert found["ssim"].tolist() == pytest.approx([grey.mean().item(), 1, 1, 1])


def test_a_films_error_is_a_frames_and_the_last_frame_is_a_guess():
    source = Spec((2, 1, 12, 12), kind="video", range=(0.0, 1.0))
    spec = Spec((3, 1, 12, 12), kind="video", range=(0.0, 1.0), source=source, task="forecast")
    x, cond = torch.ones(5, 3, 1, 12, 12), torch.zeros(5, 2, 1, 12, 12)
    guess = guesses(Batch(x, None, cond), spec, x[0])
    assert (agreement(guess["last_frame"], x, spec)["squared_error"] == 144).all()
    assert (agreement(guess["training_mean"], x, spec)["squared_error"] == 0).all()


def test_the_metric_beside_what_guessing_gives(trained):
    run = loaded(trained(*RUNS["denoise"]))
    truth = run.dataset.take("test", 50, seed=4)
    subject = Subject(run.dataset, Settings(n=50, seed=4), model=Stand(lambda cond: cond))
    ((row,),) = measure(subject, ["translation"]).values()
    expected = agreement(truth.cond, truth.x, run.spec)["psnr"].mean().item()
    assert row.name == "psnr" and row.value == pytest.approx(expected) and row.better == "higher"
    assert (
        row.conditions["source"] == f"{expected:.4g}" and float(row.conditions["training_mean"]) > 0
    )
    run.dataset.paired = False
    assert not [name for name in ("translation",) if name in measure(subject)], (
        "nothing to hold it against"
    )
    run.dataset.paired = True


def test_evaluate_measures_a_translator(trained):
    run = loaded(trained(*RUNS["denoise"]))
    assert "psnr" in evaluate(run, n=8, metrics=["translation"])
    assert (run.folder.path / "evaluation" / "translations.png").exists()


class Turned(Stand):
    """A translator whose way back is its inverse but for an offset."""

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        return cond / 0.5 + 0.1 if backward else self.function(cond)


@pytest.mark.parametrize("back", [True, False])
def test_without_pairs_sets_are_compared_and_cycles_closed(trained, back):
    run = loaded(trained(*RUNS["denoise"]))
    dataset = copy.copy(run.dataset)
    dataset.paired = False
    model = (Turned if back else Stand)(lambda cond: cond * 0.5)
    settings = Settings(n=40, seed=4, features=("pixels",))
    subject = Subject(dataset, settings, model=model)
    rows = {
        row.name: row for row in measure(subject, ["unpaired_translation"])["unpaired_translation"]
    }
    truth = dataset.take("test", 40, seed=4)
    for distance in (energy_distance, kernel_distance, frechet_distance):
        name = distance.__name__.replace("frechet_distance", "frechet")
        row = rows.pop(f"{name}_pixels")
        real = dataset.shown("test", 40, seed=4).x.flatten(1).double() / 255
        expected = [
            distance(((x + 1) / 2).clamp(0, 1).mul(255).round().flatten(1).double() / 255, real)[0]
            for x in (truth.cond * 0.5, truth.cond)
        ]
        assert [row.value, float(row.conditions["sources"])] == [
            pytest.approx(e, rel=1e-3, abs=1e-6) for e in expected
        ], name
        assert row.floor is not None
    assert set(rows) == ({"cycle_error", "cycle_error_back"} if back else set())
    if back:  # F(G(x)) = x + 1/10 and G(F(y)) = y + 1/20, in a range of 2
        assert rows["cycle_error"].value == pytest.approx(0.05) and rows[
            "cycle_error_back"
        ].value == pytest.approx(0.025)
        assert float(rows["cycle_error"].conditions["change"]) == pytest.approx(
            (truth.cond / 4).abs().mean().item(), rel=1e-3
        )
    assert "translation" not in measure(subject)
    dataset.paired = True
    assert "unpaired_translation" not in measure(Subject(dataset, settings, model=model))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_images_of_any_size_are_padded_and_cut_back(trained, tmp_path):
    def doubled(cond: torch.Tensor) -> torch.Tensor:
        assert cond.shape[2] % 4 == 0 and cond.shape[3] % 4 == 0
        return interpolate(cond, scale_factor=2)

    run = standing(loaded(trained(*RUNS["superres"])), doubled, multiple=4)
    shown = {
        "odd": noise(7, 13),
        "even": noise(8, 4, seed=1),
        "colour": np.repeat(noise(5, 6)[..., None], 3, 2),
    }
    for name, x in shown.items():
        png(tmp_path / "in" / f"{name}.png", x)
    record = superres(run, folder=str(tmp_path / "in"), out=str(tmp_path / "out"))
    assert record["n"] == 3 and record["task"] == "superres"
    for name, x in shown.items():
        grey = x[..., 0] if x.ndim == 3 else x
        made = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert np.array_equal(made, grey.repeat(2, 0).repeat(2, 1)), name


def test_a_model_of_one_size_says_so(trained, tmp_path):
    png(tmp_path / "in/large.png", noise(9, 8))
    run = standing(
        loaded(trained(*RUNS["superres"])),
        lambda cond: interpolate(cond, scale_factor=2),
        multiple=0,
    )
    with pytest.raises(
        UserError, match=r"large.png: srresnet takes sources of 8×8 alone, and this has 8×9"
    ):
        superres(run, folder=str(tmp_path / "in"), out=str(tmp_path / "out"))
    png(tmp_path / "in/large.png", noise(8, 8))
    superres(run, folder=str(tmp_path / "in"), out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="down=true"):
        superres(run, down=True)
    with pytest.raises(UserError, match="grey or RGB.*genlab inpaint"):
        translate(loaded(trained(*RUNS["inpaint"])), folder=str(tmp_path / "in"))


def test_what_is_made_smaller_is_measured_beside_bicubic(genlab, trained, tmp_path):
    for i, size in enumerate(((31, 42), (28, 30))):
        png(tmp_path / "in" / f"{i}.png", smooth(*size))
    result = genlab(
        "superres",
        f"run={trained(*RUNS['superres'])}",
        "device=cpu",
        "in=in",
        "down=true",
        "out=out",
    )
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out/superres.json").read_text())
    for i, size in enumerate(((30, 42), (28, 30))):
        x = torch.from_numpy(np.array(Image.open(tmp_path / "in" / f"{i}.png")))[
            None, None, : size[0], : size[1]
        ]
        made = torch.from_numpy(np.array(Image.open(tmp_path / "out" / f"{i}.png")))[None, None]
        assert made.shape == x.shape
        assert record["psnr_luminance_db_each"][str(i)] == pytest.approx(
            psnr_ssim.psnr(made, x, crop=2).item(), rel=1e-6
        )
        back = psnr_ssim.bicubic(psnr_ssim.bicubic(x, 0.5), size)
        assert record["psnr_luminance_db_of_bicubic_each"][str(i)] == pytest.approx(
            psnr_ssim.psnr(back, x, crop=2).item(), rel=1e-6
        )
        assert record["ssim_luminance_of_bicubic_each"][str(i)] == pytest.approx(
            psnr_ssim.ssim(back, x, crop=2).item(), rel=1e-6
        )


BACK = (
    "model=cyclegan",
    "model.width=2",
    "model.blocks=1",
    *FAKE,
    "dataset.operator=grey",
    "model.identity=0",
)


class Both(Stand):
    """A translator of colours into grey, whose way back is another function."""

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        return cond.mean(1, keepdim=True) / 2 if backward else self.function(cond)


def test_a_model_that_learnt_both_ways_is_asked_back(genlab, trained, tmp_path):
    folder = trained(*BACK)
    run = replace(
        loaded(folder),
        model=Both(lambda cond: cond.expand(-1, 3, -1, -1)),
        open_data=lambda: loaded(folder).dataset,
    )
    record = translate(run, back=True, n=5, seed=1, out=str(tmp_path / "made"))
    held, _ = queries.items(run, "test", 5, 1)
    (found,) = (tmp_path / "made").glob("translate_back_*.npz")
    with np.load(found) as kept:
        assert np.array_equal(kept["source"], held.x) and np.array_equal(kept["x"], held.cond)
        made = torch.from_numpy(kept["output"])
    torch.testing.assert_close(made, held.x.mean(1, keepdim=True) / 2)
    backwards = replace(run.spec.source, source=run.spec, task="translate")
    usual = run.dataset.take("train", 500, seed=1).cond.mean(0).expand_as(held.cond)
    for name, x in (("psnr_db", made), ("psnr_db_of_training_mean", usual)):
        assert record[name]["value"] == pytest.approx(
            agreement(x, held.cond, backwards)["psnr"].mean().item()
        )
    assert record["back"] is True and record["task"] == "translate"

    colour = noise(5, 6, 3)
    png(tmp_path / "in/x.png", colour)
    result = genlab("translate", f"run={folder}", "device=cpu", "in=in", "back=true", "out=out")
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "out/x.png").mode == "L"
    assert json.loads((tmp_path / "out/translate_back.json").read_text())["back"] is True
    translate(run, back=True, folder=str(tmp_path / "in"), out=str(tmp_path / "stood"))
    expected = ((colour / 255 * 2 - 1).mean(2) / 2 + 1) / 2 * 255
    assert np.array_equal(np.asarray(Image.open(tmp_path / "stood/x.png")), expected.round())


@pytest.mark.parametrize("asked", [{"n": 3}, {"folder": "in"}], ids=str)
def test_a_model_of_one_direction_refuses_the_way_back(trained, asked):
    with pytest.raises(UserError, match=r"back=true .*cyclegan.*pix2pix learns one"):
        translate(loaded(trained(*RUNS["colorize"])), back=True, **asked)


@pytest.mark.parametrize("mask", ["half", "transparent", "file"])
@pytest.mark.parametrize("draws", [1, 2])
def test_ones_own_images_are_filled_in_and_kept_elsewhere(mask, draws, trained, tmp_path):
    run, seen = loaded(trained(*RUNS["inpaint"])), []
    run = standing(run, lambda cond: seen.append(cond) or cond[:, :1] * 0 + 0.25, multiple=4)
    hidden = {
        "half": np.arange(9)[:, None] >= 4,
        "transparent": noise(9, 6) < 99,
        "file": noise(9, 6) < 99,
    }[mask]
    hidden, x = np.broadcast_to(hidden, (9, 6)), noise(9, 6, seed=1)
    if mask == "transparent":
        png(tmp_path / "in/x.png", np.stack([x, x, x, np.where(hidden, 127, 128)], 2))
        # what is half transparent is laid over white, and kept so
        x = np.asarray(
            Image.alpha_composite(
                Image.new("RGBA", (6, 9), "white"), Image.open(tmp_path / "in/x.png")
            ).convert("L")
        )
    else:
        png(tmp_path / "in/x.png", x)
        png(tmp_path / "mask.png", np.where(hidden, 255, 0))
    where = str(tmp_path / "mask.png") if mask == "file" else mask
    record = inpaint(
        run, folder=str(tmp_path / "in"), mask=where, draws=draws, out=str(tmp_path / "out")
    )
    names = ["x.png"] if draws == 1 else ["x_1.png", "x_2.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    for name in names:
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out" / name)), np.where(hidden, round(0.625 * 255), x)
        )
    assert record["hidden_share"] == pytest.approx(hidden.mean()) and len(seen) == draws
    assert seen[0].shape == (1, 2, 12, 8)  # padded to a multiple of 4
    marks = torch.from_numpy(np.where(hidden, 1.0, -1.0)).float()
    assert (
        torch.equal(seen[0][0, 1, :9, :6], marks) and (seen[0][0, 0, :9, :6][marks > 0] == 0).all()
    )


def test_ones_own_noisy_images_are_denoised(trained, tmp_path):
    run = standing(loaded(trained(*RUNS["denoise"])), lambda cond: cond * 0.5)
    x = noise(9, 7)
    png(tmp_path / "in/x.png", x)
    denoise(run, folder=str(tmp_path / "in"), out=str(tmp_path / "out"))
    made = np.asarray(Image.open(tmp_path / "out/x.png"))
    assert np.abs(made.astype(float) - (x / 2 + 255 / 4)).max() <= 0.5 + 1e-3


OWN = {
    "hides nothing": ("inpaint", lambda run, x: inpaint(run, folder=x, mask="transparent")),
    "judge=true": ("inpaint", lambda run, x: inpaint(run, folder=x, judge=True)),
    "fills in items of its own": ("ae", lambda run, x: inpaint(run, folder=x)),
    "denoises items of its own": ("dae", lambda run, x: denoise(run, folder=x)),
    "leave noise= and level= out": ("denoise", lambda run, x: denoise(run, folder=x, level=0.1)),
}
RECONSTRUCT = {
    "ae": ("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5"),
    "dae": ("model=dae", "model.hidden=[9]"),
}


@pytest.mark.parametrize("says", OWN)
def test_folders_are_refused_where_they_do_not_fit(says, trained, tmp_path):
    png(tmp_path / "in/x.png", noise(8, 8))
    name, asked = OWN[says]
    with pytest.raises(UserError, match=says):
        asked(loaded(trained(*(RUNS | RECONSTRUCT)[name])), str(tmp_path / "in"))


# --- forecast, denoise, inpaint ---------------------------------------------------------------------------------------


def test_what_is_forecast_becomes_the_past(trained):
    run = standing(
        loaded(trained(*RUNS["forecast"])), lambda cond: cond[:, -1:] * 0.5 + cond[:, -2:-1] * 0.25
    )
    past = torch.rand(2, 4, 1, 16, 16)
    made, before = ahead(run, past, 3), list(past.unbind(1))
    for t in range(3):
        before.append(before[-1] * 0.5 + before[-2] * 0.25)
        torch.testing.assert_close(made[:, t], before[-1])
    assert made.shape == (2, 3, 1, 16, 16)


def test_a_forecast_is_measured_frame_by_frame_and_is_a_gif(trained, tmp_path):
    run = standing(loaded(trained(*RUNS["forecast"])), lambda cond: cond[:, -1:])
    record = forecast(run, n=3, films=5, out=str(tmp_path))
    assert record["squared_error_a_frame"] == record["squared_error_a_frame_of_the_last_frame"]
    held = run.dataset.reaching(3).items(
        "test", torch.from_numpy(np.load(next(tmp_path.glob("*.npz")))["index"])
    )
    error = ((held.x - held.cond[:, -1:]) / 2).double().square().sum((2, 3, 4)).mean(0)  # (3,)
    assert record["squared_error_of_each_frame"] == pytest.approx(error.tolist(), rel=1e-6)
    with Image.open(next(tmp_path.glob("*.gif"))) as film:
        assert film.n_frames == 4 + 3 and film.info["duration"] == 200


def test_no_number_of_films_fills_the_memory(trained, tmp_path, monkeypatch):
    """10,000 films of 64×64 were forecast and measured at once, in more than 14 GB."""
    run = standing(loaded(trained(*RUNS["forecast"])), lambda cond: cond[:, -1:])
    together = []
    monkeypatch.setattr(
        "genlab.commands.forecast.ahead",
        lambda run, past, n: together.append(len(past)) or ahead(run, past, n),
    )
    monkeypatch.setattr("genlab.commands.forecast.FILMS_AT_ONCE", 2)
    first = forecast(run, n=3, films=5, out=str(tmp_path / "parts"))
    assert together == [2, 2, 1]
    monkeypatch.setattr("genlab.commands.forecast.FILMS_AT_ONCE", 100)
    assert forecast(run, n=3, films=5, out=str(tmp_path / "whole")) == first
    with np.load(next((tmp_path / "parts").glob("*.npz"))) as found:
        assert {found[key].dtype for key in ("source", "output", "x")} == {np.dtype(np.uint8)}
        assert (found["output"] == found["source"][:, -1:]).all() and found["x"].shape == (
            5,
            3,
            1,
            16,
            16,
        )


def test_noise_is_taken_off_at_the_strength_that_was_learnt(trained, tmp_path):
    run = standing(loaded(trained(*RUNS["denoise"])), lambda cond: cond * 0.5)
    record = denoise(run, n=20, out=str(tmp_path))
    assert record["level"] == 0.2
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        assert np.allclose(found["denoised"], found["noisy"] * 0.5)
        assert np.std(found["noisy"] - found["x"]) == pytest.approx(0.4, rel=0.1)


def test_holes_are_marked_as_in_training_and_the_rest_is_kept(trained, tmp_path):
    seen = []
    run = standing(
        loaded(trained(*RUNS["inpaint"])), lambda cond: seen.append(cond) or cond[:, :1] * 0 + 0.25
    )
    record = inpaint(run, mask="half", side="left", n=4, draws=1, out=str(tmp_path))
    hidden = corruptions.hidden(run.spec, "half", 4, box=None, side="left", share=0.5, seed=0)
    assert record["how"] == "translate" and seen[0].shape == (4, 2, 8, 8)
    assert (
        torch.equal(seen[0][:, 1:], torch.where(hidden, 1.0, -1.0))
        and (seen[0][:, :1][hidden] == 0).all()
    )
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        x, filled = torch.from_numpy(found["x"]), torch.from_numpy(found["filled"])[:, 0]
    assert torch.equal(filled, torch.where(hidden, 0.25, x))
