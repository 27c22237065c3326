"""Commands on translators: translate, colorize, superres, forecast, denoise and inpaint."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from genlab.builders import entrypoints
from genlab.commands.denoise import denoise
from genlab.commands.evaluate import evaluate
from genlab.commands.forecast import forecast, predict_frames
from genlab.commands.inpaint import inpaint
from genlab.commands.superres import superres
from genlab.commands.train import write_preview_picture
from genlab.commands.translate import translate
from genlab.errors import UserError
from genlab.inference import corruptions, items_and_codes, requirements
from genlab.metrics import psnr_ssim
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.energy_distance import energy_distance_and_error
from genlab.metrics.frechet import frechet_distance_and_error
from genlab.metrics.kid_mmd import kernel_inception_distance_and_error
from genlab.metrics.paired_translation import (
    make_baseline_translations,
    reason_without_lpips,
    similarities_per_item,
)
from genlab.metrics.registry import measure
from genlab.model import GenerativeModel
from genlab.runs.run_folder import RunFolder
from genlab.spec import Batch, DataSpec

FAKE = ("dataset@dataset.base=fake", "dataset.base.shape=[3,8,8]")
RUNS = {  # a small one for every task
    "colorize": ("model=pix2pix", "model.width=2", *FAKE, "dataset.operator=gray"),
    "denoise": ("model=pix2pix", "model.width=2", "dataset.operator=noise", "dataset.sigma=0.2"),
    "inpaint": ("model=pix2pix", "model.width=2", "dataset.operator=mask"),
    "superres": ("model=srresnet", "model.width=4", "model.num_blocks=1", "preprocess.size=16"),
    "forecast": ("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial_weight=0"),
}


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


class FunctionTranslator(GenerativeModel):
    """A translator that is a function."""

    def __init__(self, function, size_multiple: int = 1) -> None:
        super().__init__()
        self.function, self.size_multiple = function, size_multiple
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def translate(self, cond: torch.Tensor) -> torch.Tensor:
        return self.function(cond)


def run_of_function(run, function, **options):
    """Return a run whose model is the function."""
    return replace(
        run, model=FunctionTranslator(function, **options), open_data=lambda: run.dataset
    )


def png(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.astype(np.uint8)).save(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return 128 + 100 * np.sin(rows / 3) * np.cos(columns / 4)


# --- every task -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", RUNS)
def test_translator_supports_the_command_of_its_task_only(task, genlab, train_run, tmp_path):
    run = train_run(*RUNS[task])
    few = "videos=3" if task == "forecast" else "n=3"
    result = genlab(task, f"run={run}", "device=cpu", few, "seed=2", "output_dir=made")
    assert result.code == 0, result.err
    written = sorted((tmp_path / "made").iterdir())
    assert {path.suffix for path in written} >= {".png", ".json", ".npz"}
    (record,) = (json.loads(path.read_text()) for path in written if path.suffix == ".json")
    assert any(
        isinstance(value, dict) and value.get("value") is not None for value in record.values()
    )
    other = "superres" if task == "colorize" else "colorize"
    assert f"task={task}" in genlab(other, f"run={run}", "device=cpu").error
    fitting = requirements.commands_supported_by_run(load(run))
    assert task in fitting and "translate" in fitting and other not in fitting


def test_error_message_names_models_that_translate(genlab, train_run):
    run = train_run("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5")
    assert "srresnet" in genlab("superres", f"run={run}", "device=cpu").error


def test_preview_of_a_translator_shows_source_output_and_truth(train_run, tmp_path):
    run = load(train_run(*RUNS["superres"]))
    asked = []
    model = FunctionTranslator(lambda cond: asked.append(cond) or interpolate(cond, scale_factor=2))
    folder = RunFolder(tmp_path)
    image = write_preview_picture(
        run.dataset, folder, type("Trainer", (), {"global_step": 7})(), model
    )
    assert np.array_equal(image, np.asarray(Image.open(folder.preview_path(7))))
    assert torch.equal(asked[0], run.dataset.head("validation", 10).cond)


# --- numbers --------------------------------------------------------------------------------------


def test_superres_measures_the_written_outputs(train_run, tmp_path):
    run = run_of_function(
        load(train_run(*RUNS["superres"])),
        lambda cond: interpolate(cond, scale_factor=2).clamp(-1, 1),
    )
    record = superres(run, n=6, seed=1, output_dir=str(tmp_path))
    held, _ = items_and_codes.load_selected_items_and_indices(
        run, items_and_codes.ItemSelection(6, seed=1)
    )
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        assert np.array_equal(found["x"], held.x) and np.array_equal(found["source"], held.cond)
        made = torch.from_numpy(found["output"])
    torch.testing.assert_close(made, interpolate(held.cond, scale_factor=2))
    to_bytes = lambda x: ((x + 1) / 2 * 255).round()  # noqa: E731
    error = (to_bytes(made) - to_bytes(held.x)).double().square().mean((1, 2, 3))
    assert record["psnr_db"]["value"] == pytest.approx(
        (10 * torch.log10(255**2 / error)).mean().item(), rel=1e-6
    )
    inner = psnr_ssim.psnr_y(to_bytes(made), to_bytes(held.x), crop=2).mean().item()
    assert record["psnr_y"]["value"] == pytest.approx(inner, rel=1e-6)
    bicubic = psnr_ssim.resize_bicubic(to_bytes(held.cond).byte(), (16, 16))
    theirs = psnr_ssim.ssim(bicubic, to_bytes(held.x).byte(), crop=2).mean().item()
    assert record["ssim_y_bicubic"]["value"] == pytest.approx(theirs, rel=1e-6)
    assert "LPIPS requires" in record["lpips"]


def test_agreement_uses_all_channels_and_is_finite_for_equal_images():
    spec = DataSpec(
        (3, 12, 12),
        range=(0.0, 1.0),
        source=DataSpec((3, 12, 12), range=(0.0, 1.0)),
        task="translate",
    )
    x = torch.randint(0, 256, (4, 3, 12, 12)) / 255
    y = x.clone()
    y[0, 2, 0, 0] = 1 - x[0, 2, 0, 0].round()  # only blue differs
    found = similarities_per_item(x, y, spec)
    assert set(found) == {"psnr", "ssim"} and reason_without_lpips(spec)
    assert found["psnr"][1:].tolist() == pytest.approx([10 * np.log10(255**2 * 432)] * 3)
    off = round(255 * abs(x - y)[0].max().item())
    assert found["psnr"][0].item() == pytest.approx(10 * np.log10(255**2 * 432 / off**2))
    grey = torch.stack(
        [psnr_ssim.ssim(*((z[:1, c : c + 1] * 255).round() for z in (x, y))) for c in range(3)]
    )
    assert found["ssim"].tolist() == pytest.approx([grey.mean().item(), 1, 1, 1])


def test_video_error_is_per_frame_and_the_last_frame_is_a_baseline():
    source = DataSpec((2, 1, 12, 12), kind="video", range=(0.0, 1.0))
    spec = DataSpec((3, 1, 12, 12), kind="video", range=(0.0, 1.0), source=source, task="forecast")
    x, cond = torch.ones(5, 3, 1, 12, 12), torch.zeros(5, 2, 1, 12, 12)
    guess = make_baseline_translations(Batch(x, None, cond), spec, x[0])
    assert (similarities_per_item(guess["last_frame"], x, spec)["squared_error"] == 144).all()
    assert (similarities_per_item(guess["training_mean"], x, spec)["squared_error"] == 0).all()


def test_translation_metric_reports_the_baselines(train_run):
    run = load(train_run(*RUNS["denoise"]))
    truth = run.dataset.head("test", 50, seed=4)
    context = MetricContext(
        run.dataset, Settings(n=50, seed=4), model=FunctionTranslator(lambda cond: cond)
    )
    ((row,),) = measure(context, ["paired_translation"]).values()
    expected = similarities_per_item(truth.cond, truth.x, run.spec)["psnr"].mean().item()
    assert row.name == "psnr" and row.value == pytest.approx(expected) and row.better == "higher"
    assert (
        row.conditions["source"] == f"{expected:.4g}" and float(row.conditions["training_mean"]) > 0
    )
    run.dataset.paired = False
    assert not [name for name in ("paired_translation",) if name in measure(context)], (
        "without pairs there is nothing to compare with"
    )
    run.dataset.paired = True


def test_evaluate_measures_a_translator(train_run):
    run = load(train_run(*RUNS["denoise"]))
    assert "psnr" in evaluate(run, n=8, metrics=["paired_translation"])
    assert list((run.folder.path / "evaluation").glob("*_translations.png"))


class Turned(FunctionTranslator):
    """A translator whose backward direction is its inverse plus an offset."""

    translates_backward = True

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        return cond / 0.5 + 0.1 if backward else self.function(cond)


@pytest.mark.parametrize("back", [True, False])
def test_unpaired_metric_compares_sets_and_measures_cycles(train_run, back):
    run = load(train_run(*RUNS["denoise"]))
    dataset = copy.copy(run.dataset)
    dataset.paired = False
    model = (Turned if back else FunctionTranslator)(lambda cond: cond * 0.5)
    settings = Settings(n=40, seed=4, features=("pixels",))
    context = MetricContext(dataset, settings, model=model)
    rows = {
        row.name: row for row in measure(context, ["unpaired_translation"])["unpaired_translation"]
    }
    truth = dataset.head("test", 40, seed=4)
    distances = {
        "energy_distance": energy_distance_and_error,
        "kid": kernel_inception_distance_and_error,
        "frechet": frechet_distance_and_error,
    }
    for name, distance in distances.items():
        row = rows.pop(f"{name}_pixels")
        real = dataset.head_as_uint8_images("test", 40, seed=4).x.flatten(1).double() / 255
        expected = [
            distance(((x + 1) / 2).clamp(0, 1).mul(255).round().flatten(1).double() / 255, real)[0]
            for x in (truth.cond * 0.5, truth.cond)
        ]
        assert [row.value, float(row.conditions["sources"])] == [
            pytest.approx(e, rel=1e-3, abs=1e-6) for e in expected
        ], name
        assert row.real_vs_real is not None
    assert set(rows) == ({"cycle_error", "cycle_error_backward"} if back else set())
    if back:  # F(G(x)) = x + 1/10 and G(F(y)) = y + 1/20, in a range of 2
        assert rows["cycle_error"].value == pytest.approx(0.05) and rows[
            "cycle_error_backward"
        ].value == pytest.approx(0.025)
        assert float(rows["cycle_error"].conditions["change"]) == pytest.approx(
            (truth.cond / 4).abs().mean().item(), rel=1e-3
        )
    assert "paired_translation" not in measure(context)
    dataset.paired = True
    assert "unpaired_translation" not in measure(MetricContext(dataset, settings, model=model))


# --- folders --------------------------------------------------------------------------------------


def test_images_of_any_size_are_padded_and_cropped(train_run, tmp_path):
    def double_size(cond: torch.Tensor) -> torch.Tensor:
        assert cond.shape[2] % 4 == 0 and cond.shape[3] % 4 == 0
        return interpolate(cond, scale_factor=2)

    run = run_of_function(load(train_run(*RUNS["superres"])), double_size, size_multiple=4)
    shown = {
        "odd": noise(7, 13),
        "even": noise(8, 4, seed=1),
        "colour": np.repeat(noise(5, 6)[..., None], 3, 2),
    }
    for name, x in shown.items():
        png(tmp_path / "in" / f"{name}.png", x)
    record = superres(run, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    assert record["n"] == 3 and record["task"] == "superres"
    for name, x in shown.items():
        grey = x[..., 0] if x.ndim == 3 else x
        made = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert np.array_equal(made, grey.repeat(2, 0).repeat(2, 1)), name


def test_model_of_one_size_refuses_other_sizes(train_run, tmp_path):
    png(tmp_path / "in/large.png", noise(9, 8))
    run = run_of_function(
        load(train_run(*RUNS["superres"])),
        lambda cond: interpolate(cond, scale_factor=2),
        size_multiple=0,
    )
    with pytest.raises(
        UserError, match=r"large.png: srresnet takes sources of 8×8 only, but this image has 8×9"
    ):
        superres(run, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    png(tmp_path / "in/large.png", noise(8, 8))
    superres(run, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="downsample=true"):
        superres(run, downsample=True)
    with pytest.raises(UserError, match="gray or RGB.*genlab inpaint"):
        translate(load(train_run(*RUNS["inpaint"])), input_dir=str(tmp_path / "in"))


def test_downsampled_images_are_measured_beside_bicubic(genlab, train_run, tmp_path):
    for i, size in enumerate(((31, 42), (28, 30))):
        png(tmp_path / "in" / f"{i}.png", smooth(*size))
    result = genlab(
        "superres",
        f"run={train_run(*RUNS['superres'])}",
        "device=cpu",
        "input_dir=in",
        "downsample=true",
        "output_dir=out",
    )
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out/superres.json").read_text())
    for i, size in enumerate(((30, 42), (28, 30))):
        x = torch.from_numpy(np.array(Image.open(tmp_path / "in" / f"{i}.png")))[
            None, None, : size[0], : size[1]
        ]
        made = torch.from_numpy(np.array(Image.open(tmp_path / "out" / f"{i}.png")))[None, None]
        assert made.shape == x.shape
        assert record["psnr_y_per_image"][str(i)] == pytest.approx(
            psnr_ssim.psnr_y(made, x, crop=2).item(), rel=1e-6
        )
        back = psnr_ssim.resize_bicubic(psnr_ssim.resize_bicubic(x, 0.5), size)
        assert record["psnr_y_bicubic_per_image"][str(i)] == pytest.approx(
            psnr_ssim.psnr_y(back, x, crop=2).item(), rel=1e-6
        )
        assert record["ssim_y_bicubic_per_image"][str(i)] == pytest.approx(
            psnr_ssim.ssim(back, x, crop=2).item(), rel=1e-6
        )


@pytest.mark.parametrize(("top", "dtype"), [(65535, np.uint16), (1, np.float32)])
def test_a_folder_of_deeper_images_keeps_its_range(
    top, dtype, train_run, tmp_path, capsys, monkeypatch
):
    """12 bits in a file of 16 came out nearly black."""
    x = noise(9, 7)
    x[0, 0] = 255
    (tmp_path / "in").mkdir()

    def save(values: np.ndarray) -> None:
        Image.fromarray(values).save(tmp_path / "in/x.tiff")

    def denoise_it(out: str) -> dict[str, Any]:
        return denoise(run, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / out))

    save((x / 255 * top).round(0 if top > 1 else 6).astype(dtype))
    run = run_of_function(load(train_run(*RUNS["denoise"])), lambda cond: cond)
    record = denoise_it("out")
    assert np.abs(np.asarray(Image.open(tmp_path / "out/x.png")).astype(int) - x).max() <= 1
    assert f"{top} white" in record["notes"][0] and f"{top} white" in capsys.readouterr().err
    save((x / 255 * 4095).astype(np.uint16))
    with pytest.raises(UserError, match=r"input_dir=.*save them with 8 bits"):
        denoise_it("other")
    # as the images that the model was trained on
    options = run.config["dataset"]
    monkeypatch.setitem(options, "base", {**options, "file_range": [0, 4095]})  # in a wrapper
    denoise_it("other")
    assert np.abs(np.asarray(Image.open(tmp_path / "other/x.png")).astype(int) - x).max() <= 1


@pytest.mark.parametrize("task", ["superres", "colorize", "denoise", "inpaint"])
def test_unreadable_files_of_a_folder_are_counted(task, genlab, train_run, tmp_path):
    """One cut file of a hundred ended the command, after it had written the others."""
    for i in range(2):
        png(tmp_path / "in" / f"{i}.png", noise(16, 16))
    (tmp_path / "in" / "00.png").write_bytes(b"\x89PNG cut short")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "sub").mkdir()
    command = (task, f"run={train_run(*RUNS[task])}", "device=cpu", "input_dir=in")
    options = (["downsample=true"] if task == "superres" else []) + ["output_dir=out"]
    options += ["mask=half"] if task == "inpaint" else []
    result = genlab(*command, *options)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / f"{task}.json").read_text())
    assert record["n"] == 2
    assert {reason: entry["count"] for reason, entry in record["left_out"].items()} == {
        "unreadable": 1,
        "unsupported suffix .txt": 1,
        "a folder inside of input_dir=": 1,
    }
    assert "left out, unreadable: 1: 00.png" in result.err
    for path in (tmp_path / "in").glob("?.png"):
        path.unlink()
    assert "no image is left" in genlab(*command, *options[:-1], "output_dir=none").error


def test_a_tiny_image_does_not_end_a_measurement(genlab, train_run, tmp_path):
    """PSNR needs more pixels than it has; the other image is measured all the same."""
    png(tmp_path / "in" / "large.png", smooth(32, 32))
    png(tmp_path / "in" / "small.png", smooth(4, 4))
    png(tmp_path / "in" / "dot.png", smooth(1, 1))
    command = ("superres", f"run={train_run(*RUNS['superres'])}", "device=cpu")
    result = genlab(*command, "input_dir=in", "downsample=true", "output_dir=out")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out/superres.json").read_text())
    assert record["n"] == 2 and record["left_out"]["smaller than the factor 2"]["count"] == 1
    assert list(record["psnr_y_per_image"]) == ["large"]


BACK = (
    "model=cyclegan",
    "model.width=2",
    "model.num_blocks=1",
    *FAKE,
    "dataset.operator=gray",
    "model.identity_weight=0",
)


class Both(FunctionTranslator):
    """A translator from color to gray, whose backward direction is another function."""

    translates_backward = True

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        return cond.mean(1, keepdim=True) / 2 if backward else self.function(cond)


def test_cyclegan_translates_backward(genlab, train_run, tmp_path):
    folder = train_run(*BACK)
    run = replace(
        load(folder),
        model=Both(lambda cond: cond.expand(-1, 3, -1, -1)),
        open_data=lambda: load(folder).dataset,
    )
    record = translate(run, backward=True, n=5, seed=1, output_dir=str(tmp_path / "made"))
    held, _ = items_and_codes.load_selected_items_and_indices(
        run, items_and_codes.ItemSelection(5, seed=1)
    )
    (found,) = (tmp_path / "made").glob("translate_backward_*.npz")
    with np.load(found) as kept:
        assert np.array_equal(kept["source"], held.x) and np.array_equal(kept["x"], held.cond)
        made = torch.from_numpy(kept["output"])
    torch.testing.assert_close(made, held.x.mean(1, keepdim=True) / 2)
    backwards = replace(run.spec.source, source=run.spec, task="translate")
    usual = run.dataset.head("train", 500, seed=1).cond.mean(0).expand_as(held.cond)
    for name, x in (("psnr_db", made), ("psnr_db_training_mean", usual)):
        assert record[name]["value"] == pytest.approx(
            similarities_per_item(x, held.cond, backwards)["psnr"].mean().item()
        )
    assert record["backward"] is True and record["task"] == "translate"

    colour = noise(5, 6, 3)
    png(tmp_path / "in/x.png", colour)
    result = genlab(
        "translate",
        f"run={folder}",
        "device=cpu",
        "input_dir=in",
        "backward=true",
        "output_dir=out",
    )
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "out/x.png").mode == "L"
    assert json.loads((tmp_path / "out/translate_backward.json").read_text())["backward"] is True
    translate(
        run, backward=True, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "stood")
    )
    expected = ((colour / 255 * 2 - 1).mean(2) / 2 + 1) / 2 * 255
    assert np.array_equal(np.asarray(Image.open(tmp_path / "stood/x.png")), expected.round())


@pytest.mark.parametrize("asked", [{"n": 3}, {"input_dir": "in"}], ids=str)
def test_model_of_one_direction_refuses_backward(train_run, asked):
    with pytest.raises(UserError, match=r"backward=true .*cyclegan.*pix2pix learns one"):
        translate(load(train_run(*RUNS["colorize"])), backward=True, **asked)


@pytest.mark.parametrize("mask", ["half", "transparent", "file"])
@pytest.mark.parametrize("draws", [1, 2])
def test_inpaint_folder_keeps_visible_pixels(mask, draws, train_run, tmp_path):
    run, seen = load(train_run(*RUNS["inpaint"])), []
    run = run_of_function(
        run, lambda cond: seen.append(cond) or cond[:, :1] * 0 + 0.25, size_multiple=4
    )
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
        run,
        input_dir=str(tmp_path / "in"),
        mask=where,
        draws=draws,
        output_dir=str(tmp_path / "out"),
    )
    names = ["x.png"] if draws == 1 else ["x_1.png", "x_2.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    for name in names:
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out" / name)), np.where(hidden, round(0.625 * 255), x)
        )
    assert record["hidden_fraction"] == pytest.approx(hidden.mean()) and len(seen) == draws
    assert seen[0].shape == (1, 2, 12, 8)  # padded to a multiple of 4
    marks = torch.from_numpy(np.where(hidden, 1.0, -1.0)).float()
    assert (
        torch.equal(seen[0][0, 1, :9, :6], marks) and (seen[0][0, 0, :9, :6][marks > 0] == 0).all()
    )


def test_denoise_folder_writes_denoised_images(train_run, tmp_path):
    run = run_of_function(load(train_run(*RUNS["denoise"])), lambda cond: cond * 0.5)
    x = noise(9, 7)
    png(tmp_path / "in/x.png", x)
    denoise(run, input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    made = np.asarray(Image.open(tmp_path / "out/x.png"))
    assert np.abs(made.astype(float) - (x / 2 + 255 / 4)).max() <= 0.5 + 1e-3


OWN = {
    "hides no pixel": ("inpaint", lambda run, x: inpaint(run, input_dir=x, mask="transparent")),
    "classify_fills=true": (
        "inpaint",
        lambda run, x: inpaint(run, input_dir=x, classify_fills=True),
    ),
    "fills in items of its dataset": ("ae", lambda run, x: inpaint(run, input_dir=x)),
    "denoises items of its dataset": ("dae", lambda run, x: denoise(run, input_dir=x)),
    "leave noise= and level= out": ("denoise", lambda run, x: denoise(run, input_dir=x, level=0.1)),
}
RECONSTRUCT = {
    "ae": ("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5"),
    "dae": ("model=dae", "model.hidden=[9]"),
}


@pytest.mark.parametrize("says", OWN)
def test_input_dir_is_refused_where_it_does_not_fit(says, train_run, tmp_path):
    png(tmp_path / "in/x.png", noise(8, 8))
    name, asked = OWN[says]
    with pytest.raises(UserError, match=says):
        asked(load(train_run(*(RUNS | RECONSTRUCT)[name])), str(tmp_path / "in"))


# --- forecast, denoise, inpaint -------------------------------------------------------------------


def test_predicted_frames_become_the_context(train_run):
    run = run_of_function(
        load(train_run(*RUNS["forecast"])), lambda cond: cond[:, -1:] * 0.5 + cond[:, -2:-1] * 0.25
    )
    past = torch.rand(2, 4, 1, 16, 16)
    made, before = predict_frames(run, past, 3), list(past.unbind(1))
    for t in range(3):
        before.append(before[-1] * 0.5 + before[-2] * 0.25)
        torch.testing.assert_close(made[:, t], before[-1])
    assert made.shape == (2, 3, 1, 16, 16)


def test_forecast_measures_each_frame_and_writes_a_gif(train_run, tmp_path):
    run = run_of_function(load(train_run(*RUNS["forecast"])), lambda cond: cond[:, -1:])
    record = forecast(run, n=3, videos=5, output_dir=str(tmp_path))
    assert record["squared_error_per_frame"] == record["squared_error_per_frame_of_last_frame"]
    held = run.dataset.with_target_frames(3).items(
        "test", torch.from_numpy(np.load(next(tmp_path.glob("*.npz")))["index"])
    )
    error = ((held.x - held.cond[:, -1:]) / 2).double().square().sum((2, 3, 4)).mean(0)  # (3,)
    assert record["squared_error_by_frame"] == pytest.approx(error.tolist(), rel=1e-6)
    with Image.open(next(tmp_path.glob("*.gif"))) as film:
        assert film.n_frames == 4 + 3 and film.info["duration"] == 200


def test_forecast_works_in_batches(train_run, tmp_path, monkeypatch):
    """10,000 videos of 64×64 once took more than 14 GB, because they were forecast together."""
    run = run_of_function(load(train_run(*RUNS["forecast"])), lambda cond: cond[:, -1:])
    together = []
    monkeypatch.setattr(
        "genlab.commands.forecast.predict_frames",
        lambda run, past, n: together.append(len(past)) or predict_frames(run, past, n),
    )
    monkeypatch.setattr("genlab.commands.forecast.VIDEOS_PER_BATCH", 2)
    first = forecast(run, n=3, videos=5, output_dir=str(tmp_path / "parts"))
    assert together == [2, 2, 1]
    monkeypatch.setattr("genlab.commands.forecast.VIDEOS_PER_BATCH", 100)
    assert forecast(run, n=3, videos=5, output_dir=str(tmp_path / "whole")) == first
    with np.load(next((tmp_path / "parts").glob("*.npz"))) as found:
        assert {found[key].dtype for key in ("source", "output", "x")} == {np.dtype(np.uint8)}
        assert (found["output"] == found["source"][:, -1:]).all() and found["x"].shape == (
            5,
            3,
            1,
            16,
            16,
        )


@pytest.mark.parametrize(
    ("n", "split", "remedy"),
    [
        (4, "test", "give split=train or n=1"),
        (9, "validation", "give split=train"),
        (99, "test", "give n=1"),
        (99, "train", "give n=10"),
        (2, "train", None),
    ],
)
def test_forecast_names_a_split_with_longer_videos(n, split, remedy, genlab, tmp_path, train_run):
    for i in range(20):
        png(tmp_path / "film" / f"{i}.png", noise(16, 16, seed=i))
    lengths = ("dataset.context_frames=4", "dataset.validation=0.05", "dataset.test=0.25")
    data = ("dataset=frames_folder", f"dataset.path={tmp_path}/film", *lengths)
    small = ("model=next_frame", "model.width=[2,2,2,2]", "model.adversarial_weight=0")
    out = ("trainer.steps=1", "trainer.batch_size=4", "device=cpu", "out=run")
    assert genlab("train", *small, *data, *out).code == 0
    result = genlab("forecast", "run=run", f"n={n}", f"split={split}", "device=cpu")
    if remedy is None:
        assert result.code == 0, result.err
        return
    assert result.error.endswith(remedy), result.error
    name, _, value = remedy.split()[1].partition("=")
    options = {"n": str(n), "split": split} | {name: value}
    words = [f"{key}={value}" for key, value in options.items()]
    again = genlab("forecast", "run=run", *words, "device=cpu")
    assert again.code == 0, again.err


def test_denoise_uses_the_noise_level_of_training(train_run, tmp_path):
    run = run_of_function(load(train_run(*RUNS["denoise"])), lambda cond: cond * 0.5)
    record = denoise(run, n=20, output_dir=str(tmp_path))
    assert record["level"] == 0.2
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        assert np.allclose(found["denoised"], found["noisy"] * 0.5)
        assert np.std(found["noisy"] - found["x"]) == pytest.approx(0.4, rel=0.1)


def test_inpaint_marks_hidden_pixels_as_in_training(train_run, tmp_path):
    seen = []
    run = run_of_function(
        load(train_run(*RUNS["inpaint"])), lambda cond: seen.append(cond) or cond[:, :1] * 0 + 0.25
    )
    record = inpaint(run, mask="half", half="left", n=4, draws=1, output_dir=str(tmp_path))
    hidden = corruptions.hidden_value_mask(
        corruptions.Mask("half", half="left"), run.spec, 4, seed=0
    )
    assert record["method"] == "translate" and seen[0].shape == (4, 2, 8, 8)
    assert (
        torch.equal(seen[0][:, 1:], torch.where(hidden, 1.0, -1.0))
        and (seen[0][:, :1][hidden] == 0).all()
    )
    with np.load(next(tmp_path.glob("*.npz"))) as found:
        x, filled = torch.from_numpy(found["x"]), torch.from_numpy(found["filled"])[:, 0]
    assert torch.equal(filled, torch.where(hidden, 0.25, x))
