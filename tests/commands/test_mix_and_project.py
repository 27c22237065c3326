"""Codes of a style-based generator: mix, project, and the space w of the latent commands."""

from __future__ import annotations

import json
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.builders import entrypoints
from genlab.commands.mix import mix_styles
from genlab.commands.project import edit_codes_and_name_edits
from genlab.inference import items_and_codes, latent_search

STYLE = ("model=stylegan2", "model.channel_max=8", "model.latent=12", "model.num_mapping_layers=2")
GAN = ("model=gan", "model.latent=8", "model.hidden=[16]")


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


@pytest.fixture
def ask(train_run, tmp_path):
    """`ask("mix", n=3)` runs a command on a StyleGAN2; returns its JSON and .npz as one dict."""

    def answer(command: str, *, of: tuple[str, ...] = STYLE, **options) -> dict:
        out = tmp_path / "asked"
        for old in out.glob("*"):
            old.unlink()
        record = getattr(import_module(f"genlab.commands.{command}"), command)(
            load(train_run(*of)), **options, output_dir=str(out)
        )
        (file,), (arrays,) = out.glob("*.json"), out.glob("*.npz")
        written = json.loads(file.read_text())
        assert written["question"]["command"] == command and set(written.pop("files"))
        del written["question"]
        assert written == json.loads(json.dumps(record)) and list(out.glob("*.png"))
        with np.load(arrays) as held:
            return {**record, "npz": arrays, **{key: torch.from_numpy(held[key]) for key in held}}

    return answer


# --- mix ------------------------------------------------------------------------------------------


def test_mix_styles_replaces_a_range_of_layers():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3), torch.randn(4, 5, 3)
    found = mix_styles(a, b, 1, 3)
    assert found.shape == (2, 4, 5, 3)
    for i in range(2):
        for j in range(4):
            assert torch.equal(found[i, j], torch.cat([a[i, :1], b[j, 1:3], a[i, 3:]]))
    assert torch.equal(mix_styles(a, b, 0, 5), b.expand(2, 4, 5, 3)) and torch.equal(
        mix_styles(a, b, 2, 2)[:, 0], a
    )


def test_mix_decodes_the_mix_styles(ask, train_run):
    found = ask("mix", rows=2, columns=3)
    model = load(train_run(*STYLE)).model
    assert (
        found["layers"] == 4 and found["coarse_layers"] == [0, 0] and found["fine_layers"] == [3, 3]
    )
    for scale in ("coarse", "middle", "fine"):
        start, end = found[f"{scale}_layers"]
        w = mix_styles(found["w_a"], found["w_b"], start, end + 1)
        torch.testing.assert_close(
            found[scale], model.synthesize(w.flatten(0, 1)).detach().unflatten(0, (2, 3))
        )
        off = (found[scale] - found["a"][:, None]).double().square().mean().item()
        assert found[f"{scale}_of_b_distance_to_a"]["value"] == pytest.approx(off, rel=1e-5)
    assert ask("mix", rows=2, columns=3, cuts=(1, 4)).keys() & {"coarse", "middle", "fine"} == {
        "coarse",
        "middle",
    }
    still = ask("mix", rows=2, columns=2, truncation=0.0)
    assert (
        torch.equal(still["a"][0], still["a"][1])
        and still["coarse_of_b_distance_to_b"]["value"] == 0
    )


# --- w in the latent commands ---------------------------------------------------------------------


def test_w_codes_are_styles_of_prior_draws(train_run):
    run = load(train_run(*STYLE))
    torch.manual_seed(0)
    w = items_and_codes.draw_prior_codes(run, 3, space="w")
    torch.manual_seed(0)
    z = run.model.prior(3)
    torch.testing.assert_close(
        items_and_codes.decoder_of_code_space(run, "w")(w), run.model.decode(z)
    )
    assert items_and_codes.prior_or_encoded_codes(run, split="test", seed=0, space="w").shape == (
        items_and_codes.REFERENCE_CODES,
        12,
    )


@pytest.mark.parametrize("space", ["z", "w"])
def test_latent_commands_accept_a_space(ask, train_run, space):
    run = load(train_run(*STYLE))
    decode = torch.no_grad()(items_and_codes.decoder_of_code_space(run, space))
    torch.manual_seed(5)
    codes = items_and_codes.draw_prior_codes(run, 9, space=space)
    ways = ask("interpolate", n=2, frames=3, space=space, seed=5)
    torch.testing.assert_close(ways["z"][:, 1], (ways["z"][:, 0] + ways["z"][:, 2]) / 2)
    torch.testing.assert_close(ways["frames"].flatten(0, 1), decode(ways["z"].flatten(0, 1)))
    sums = ask(
        "arithmetic",
        group_by="draw",
        space=space,
        a=[0, 1, 2],
        b=[3, 4, 5],
        c=[6, 7, 8],
        n=9,
        seed=5,
    )
    means = codes.unflatten(0, (3, 3)).mean(1)  # of three draws per term
    torch.testing.assert_close(sums["z"], torch.cat([means, means[:1] - means[1:2] + means[2:]]))
    torch.testing.assert_close(sums["direction"], means[2] - means[1])
    moved = ask("traverse", n=2, frames=3, space=space)
    assert moved["frames"].shape[:2] == (2, 3) and moved["start"].shape == (12,)


# --- project --------------------------------------------------------------------------------------


def test_restarts_return_the_best_code_first():
    torch.manual_seed(0)
    double_well = lambda z: (z.square() - 1).square() + 0.3 * z  # noqa: E731 — its minimum at −1 is the lower one
    usual = torch.randn(100, 1, dtype=torch.float64)
    x = torch.full((2, 1), -0.31, dtype=torch.float64)
    known = torch.ones_like(x, dtype=torch.bool)
    first = torch.tensor([[1.2], [-1.2], [-1.2], [1.2]], dtype=torch.float64)
    search = latent_search.LatentSearch(usual, prior_weight=0.0, steps=200)
    z = latent_search.optimize_codes_with_restarts(
        double_well, x, known, search, tries=2, start=first
    )
    assert z.shape == (2, 2, 1)
    left = (double_well(z) - x[:, None]).square().squeeze(2)
    assert (left[:, 0] <= left[:, 1]).all() and (z[:, 0] < -0.8).all() and (z[:, 1] > 0.8).all()


@pytest.mark.parametrize("space", ["z", "w"])
def test_project_finds_a_generated_image(ask, train_run, tmp_path, space):
    run = load(train_run(*STYLE))
    torch.manual_seed(7)
    low, high = run.spec.range
    mine = (
        ((run.model.decode(run.model.prior(1)).detach()[0, 0] - low) / (high - low) * 255)
        .round()
        .byte()
        .numpy()
    )
    Image.fromarray(mine).save(tmp_path / "mine.png")
    found = ask(
        "project",
        images=str(tmp_path / "mine.png"),
        space=space,
        steps=150,
        tries=2,
        prior_weight=0.0,
    )
    assert found["x"].shape == found["found"].shape == (1, *run.spec.shape)
    np.testing.assert_array_equal(
        ((found["x"][0, 0] - low) / (high - low) * 255).round().byte(), mine
    )
    torch.testing.assert_close(
        found["found"],
        torch.no_grad()(items_and_codes.decoder_of_code_space(run, space))(found["z"]),
    )
    error = (found["x"] - found["found"]).double().square().sum().item()
    assert found["squared_error"]["value"] == pytest.approx(error)
    assert error < 0.1 * found["squared_error_of_mean_item"]["value"]


def test_edits_interpolate_or_follow_a_direction(ask):
    z = torch.randn(3, 4)
    ways, names = edit_codes_and_name_edits(z, "interpolate", (0.0, 1.0))
    torch.testing.assert_close(ways, torch.stack([z, z.roll(-1, 0)], 1))
    assert names == ["+0", "+1"]
    sums = ask("arithmetic", of=GAN, group_by="draw", a=0, b=1, c=2, n=3)
    kept = Path(sums["npz"]).rename(sums["npz"].parent.parent / "direction.npz")
    found = ask("project", of=GAN, n=2, steps=3, tries=1, edit=str(kept), strengths=(0.5, -1.0))
    moved = found["z"][:, None] + torch.tensor([0.5, -1.0])[:, None] * sums["direction"]
    torch.testing.assert_close(found["edited_z"], moved)
    assert found["edited"].shape[:2] == (2, 2)


REFUSED = [
    (GAN, "mix", ["genlab mix needs", "stylegan2"]),
    (GAN, "project space=w", ["GAN does not support `synthesize`", "stylegan2"]),
    (GAN, "interpolate space=w", ["GAN does not support `styles`", "stylegan2"]),
    (STYLE, "mix cuts=[3,9]", ["cuts=[3, 9]", "0 to 3"]),
    (STYLE, "interpolate space=w endpoints=data", ["does not support `encode`"]),
    (STYLE, "traverse space=w item=3", ["space=z", "genlab project"]),
    (STYLE, "arithmetic space=w a=3", ["group_by=draw"]),
    (STYLE, "project edit=nothing.npz", ["edit=nothing.npz", "interpolate"]),
    (STYLE, "project images=nothing.png", ["nothing.png", "cannot be read"]),
    (GAN, "sample sampler.truncation=0.5", ["truncation"]),
]


@pytest.mark.parametrize(("of", "words", "said"), REFUSED, ids=[words for _, words, _ in REFUSED])
def test_error_message_names_the_fix(of, words, said, genlab, train_run):
    command, *options = words.split()
    error = genlab(command, f"run={train_run(*of)}", "device=cpu", *options).error
    assert all(word in error for word in said), error


COMMAND_LINES = [
    ("mix", "rows=2", "columns=2", "truncation=0.7"),
    ("project", "n=2", "steps=2", "tries=1", "space=w", "edit=interpolate"),
    ("sample", "n=4", "sampler.truncation=0.5"),
]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=lambda words: words[0])
def test_command_line_options_are_accepted(words, genlab, train_run):
    run = partial(
        genlab, words[0], f"run={train_run(*STYLE)}", "device=cpu", "output_dir=here", *words[1:]
    )
    result = run()
    assert result.code == 0, result.err
    assert ".png" in result.out and ".npz" in result.out
