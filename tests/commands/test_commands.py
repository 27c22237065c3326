"""The commands reconstruct, encode, interpolate, traverse, arithmetic, inpaint, denoise."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.kinds import first_of_each_kind
from helpers.recipes import model_family
from PIL import Image

from genlab.abilities import ABILITIES, RARE_ABILITIES, abilities
from genlab.builders import entrypoints
from genlab.commands import COMMANDS
from genlab.commands.interpolate import interpolate_linearly, interpolate_spherically
from genlab.data.degradations import TASKS
from genlab.errors import UserError
from genlab.inference import corruptions, items_and_codes, latent_search, requirements
from genlab.metrics import features
from genlab.models.vae.vae import VAE
from genlab.spec import DataSpec
from genlab.viz.sheets import read_picture_from_sheet_png

RUNS = {  # small models with different abilities
    "vae": ("model=vae", "model.latent=2"),
    "cvae": ("model=cvae", "model.latent=4"),
    "ae": ("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5"),
    "pca": ("model=pca", "model.latent=6"),
    "gan": ("model=gan", "model.latent=8", "model.hidden=[16]", "model.conditional=true"),
    "rbm": ("model=rbm", "model.hidden=12", "model.num_chains=4"),
    "flow": ("model=realnvp_points", "model.num_couplings=2", "dataset.n=1000"),
    "ddpm": ("model=ddpm_points", "dataset.n=1000"),
}
OPTIONS = {  # options that make each command fast
    "reconstruct": {"n": 30},
    "encode": {"n": 30},
    "interpolate": {"n": 3, "frames": 4, "method": "spherical"},
    "traverse": {"n": 3, "frames": 3},
    "arithmetic": {"group_by": "draw", "n": 5, "a": [0, 1], "b": 2, "c": 3},
    "inpaint": {"n": 3, "draws": 2, "mask": "random", "steps": 3},
    "denoise": {"n": 30, "noise": "masking"},
}


@pytest.fixture
def ask(train_run, tmp_path):
    """`ask("encode", "vae", n=3)` runs a command and returns its JSON and .npz as one dict."""

    def answer(command: str, name: str, **options) -> dict:
        out = tmp_path / "asked"
        for old in out.glob("*"):
            old.unlink()
        function = getattr(import_module(f"genlab.commands.{command}"), command)
        record = function(load(train_run(*RUNS[name])), **options, output_dir=str(out))
        (file,), (arrays,) = out.glob("*.json"), out.glob("*.npz")
        written = json.loads(file.read_text())
        assert written["question"]["command"] == command and set(written.pop("files"))
        del written["question"]
        assert written == json.loads(json.dumps(record))
        with np.load(arrays) as held:
            return {**record, **{key: torch.from_numpy(held[key]) for key in held}}

    return answer


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- every command on every model -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    first_of_each_kind(
        [(name, command) for name in RUNS for command in OPTIONS],
        lambda case: (model_family(RUNS[case[0]]), case[1]),
    ),
)
def test_command_is_reproducible_or_names_models_that_support_it(
    command, name, train_run, tmp_path, capsys
):
    run = load(train_run(*RUNS[name]))
    function = getattr(import_module(f"genlab.commands.{command}"), command)
    options = dict(OPTIONS[command])
    if command == "arithmetic" and "prior" not in abilities(run.model):
        options["group_by"] = "item"
    if command not in requirements.commands_supported_by_run(run):
        with pytest.raises(
            UserError, match=f"genlab {command} needs .*models that do: .*(vae|rbm|ddpm)"
        ):
            function(run, **options)
        return
    if (name, command) == ("ddpm", "denoise"):
        options["noise"] = "gaussian"  # the only noise that it removes
    for folder in ("a", "b"):
        function(run, **options, seed=3, output_dir=str(tmp_path / folder))
    made = files(tmp_path / "a")
    assert made == files(tmp_path / "b"), "the same seed must give the same bytes"
    assert {Path(file).suffix for file in made} == {".png", ".json", ".npz"}
    assert all(str(tmp_path / "a" / file) in capsys.readouterr().out for file in list(made)[:1])
    for file in made:
        if file.endswith(".png"):
            assert np.ptp(np.asarray(Image.open(tmp_path / "a" / file))) > 0
        if file.endswith(".json"):
            record = json.loads(made[file])
            numbers = [v["value"] for v in record.values() if isinstance(v, dict) and "value" in v]
            assert all(math.isfinite(v) for v in numbers) and record["seed"] == 3


COMMAND_LINES = [
    ("reconstruct", "n=null", "items=[1,2]"),
    ("encode", "split=train", "n=20"),
    ("interpolate", "pairs=[[0,1],[2,3]]", "frames=3"),
    ("interpolate", "endpoints=prior", "method=spherical", "label=[3,8]", "n=2"),
    ("traverse", "dims=[1,0]", "item=3", "frames=3"),
    ("arithmetic", "a=7", "b=[1,2]", "c=[0]", "n=50"),
    ("arithmetic", "attribute=3", "strengths=[0,1.5]", "n=50"),
    ("inpaint", "box=[1,1,4,5]", "method=search", "steps=3", "n=2"),
]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=lambda words: "-".join(words[:2]))
def test_command_line_options_are_accepted(words, genlab, train_run):
    result = genlab(
        words[0], f"run={train_run(*RUNS['cvae'])}", "device=cpu", "output_dir=here", *words[1:]
    )
    assert result.code == 0, result.err
    assert ".png" in result.out and ".json" in result.out and ".npz" in result.out


REFUSED = [
    ("gan", "interpolate endpoints=data", ["GAN does not support `encode`", "vae", "pca"]),
    ("gan", "arithmetic a=7", ["GAN does not support `encode`", "vae"]),
    ("gan", "interpolate label=11", ["label=11", "classes are 0 to 9"]),
    (
        "vae",
        "interpolate label=1",
        ["label=1", "is not conditioned on classes", "model.conditional=true"],
    ),
    ("vae", "interpolate endpoints=prior pairs=[[0,1]]", ["pairs=", "endpoints=data"]),
    ("vae", "reconstruct items=[5000]", ["test split", "not 5000"]),
    ("vae", "traverse dims=[2]", ["dims=[2]", "0 to 1"]),
    ("vae", "traverse frames=1", ["frames", "greater than or equal to 2"]),
    ("vae", "arithmetic", ["a=[7] b=[1] c=[0]", "attribute="]),
    ("vae", "arithmetic a=1 attribute=2", ["only attribute=<class>"]),
    ("vae", "arithmetic a=12", ["a=12", "classes are 0 to 9"]),
    ("vae", "arithmetic group_by=draw n=4 a=4", ["draws 0 to 3"]),
    ("vae", "inpaint mask=holes", ["mask=holes", "box, half or random"]),
    ("vae", "inpaint box=[4,4,5,1]", ["box=[4, 4, 5, 1]", "8×8"]),
    ("flow", "inpaint", ["mask=box", "points", "mask=half"]),
    ("flow", "inpaint mask=half classify_fills=true", ["classify_fills=true", "leave it out"]),
    (
        "flow",
        "inpaint method=inpaint mask=half",
        ["RealNVP does not support `inpaint`", "ddpm_points"],
    ),
    ("rbm", "denoise noise=masking level=1.5", ["level=1.5", "fraction"]),
    ("rbm", "project", ["genlab project needs", "rbm", "vae"]),
    (
        "ddpm",
        "project",
        ["genlab project needs decode and gradient and prior", "ddpm", "realnvp_points"],
    ),
]


@pytest.mark.parametrize(
    ("name", "words", "said"), REFUSED, ids=[f"{n} {w}" for n, w, _ in REFUSED]
)
def test_error_message_names_the_fix(name, words, said, genlab, train_run):
    command, *options = words.split()
    error = genlab(command, f"run={train_run(*RUNS[name])}", "device=cpu", *options).error
    assert all(word in error for word in said), error


def test_info_lists_supported_commands(genlab, train_run):
    listed = genlab("info", f"run={train_run(*RUNS['gan'])}").out
    assert all(
        f"genlab {c} run=" in listed
        for c in ("sample", "interpolate", "traverse", "arithmetic", "inpaint")
    )
    assert not any(
        f"genlab {c} run=" in listed for c in ("reconstruct", "encode", "denoise", "complete")
    )


def test_requirements_name_existing_commands_and_abilities():
    assert requirements.REQUIREMENTS.keys() <= COMMANDS.keys()
    words = {word for ways in requirements.REQUIREMENTS.values() for way in ways for word in way}
    assert {word for word in words if not word.startswith("task=")} <= {
        *ABILITIES,
        *RARE_ABILITIES,
        requirements.CAPTIONS,
        requirements.CLASSES,
        requirements.GRADIENT,
    }
    assert {word.removeprefix("task=") for word in words if word.startswith("task=")} <= {
        *TASKS.values(),
        "forecast",
    }


def test_items_are_selected_by_index(train_run):
    dataset = load(train_run(*RUNS["pca"])).dataset
    raw, labels = dataset.raw_items_and_labels("test")
    held = dataset.items("test", torch.tensor([5, 0, 5]))
    assert torch.equal(held.y, labels[[5, 0, 5]])
    bins = raw[[5, 0, 5]] / 17  # dequantized: each value is inside its bin
    assert ((held.x >= bins - 1e-6) & (held.x <= bins + 1 / 17 + 1e-6)).all()


# --- reconstruct, encode --------------------------------------------------------------------------


def test_reconstruction_errors_match_the_written_arrays(ask):
    found = ask("reconstruct", "pca", n=40)
    each = (found["x"] - found["reconstruction"]).double().square().flatten(1)  # (40, 64)
    assert found["squared_error"]["value"] == pytest.approx(each.sum(1).mean().item(), rel=1e-6)
    assert found["squared_error"]["error"] == pytest.approx(
        each.sum(1).std().item() / 40**0.5, rel=1e-6
    )
    assert found["psnr_db"]["value"] == pytest.approx(
        (-10 * each.mean(1).log10()).mean().item() + 20 * math.log10(16 / 17), rel=1e-6
    )  # the 17 levels in [0, 1] are the middles of their bins, 16/17 apart
    levels = found["x"].double() * 17 - 0.5  # without the noise of dequantization
    assert torch.allclose(levels, levels.round(), atol=1e-5)


def test_encode_writes_the_codes_of_the_model(ask, train_run):
    run = load(train_run(*RUNS["ae"]))
    found = ask("encode", "ae", items=[4, 1])
    held = run.dataset.items("test", torch.tensor([4, 1]))
    torch.testing.assert_close(found["z"], run.model.encode(held.x).detach())
    assert (
        torch.equal(found["y"], held.y)
        and found["index"].tolist() == [4, 1]
        and found["code"] == [5]
    )
    assert len(ask("encode", "ae", split="validation")["z"]) == run.dataset.size("validation"), (
        "without n, all items"
    )


# --- interpolate, traverse ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_interpolation_ends_are_reconstructions(method, ask):
    ways = ask("interpolate", "ae", method=method, pairs=[(3, 8), (5, 5)], frames=5)
    back = ask("reconstruct", "ae", items=[3, 5, 8, 5])["reconstruction"]
    torch.testing.assert_close(ways["frames"][:, 0], back[:2])
    torch.testing.assert_close(ways["frames"][:, -1], back[2:])
    assert ways["index"].tolist() == [[3, 8], [5, 5]]
    torch.testing.assert_close(
        ways["frames"][1],
        back[1].expand(5, -1, -1, -1),
        msg="the path from an item to itself is constant",
    )


def test_linear_path_is_evenly_spaced_and_not_shorter_than_the_distance(ask):
    ways = ask("interpolate", "ae", n=4, frames=6)
    torch.testing.assert_close(ways["z"][:, 2], 0.6 * ways["z"][:, 0] + 0.4 * ways["z"][:, -1])
    steps = ways["frames"].double().diff(dim=1).flatten(2).norm(dim=2)  # (4, 5)
    assert ways["path_length"]["value"] == pytest.approx(steps.sum(1).mean().item(), rel=1e-6)
    assert ways["longest_step"]["value"] == pytest.approx(
        steps.max(1).values.mean().item(), rel=1e-6
    )
    assert ways["path_length"]["value"] >= ways["distance"]["value"] - 1e-6


def test_spherical_path_stays_on_the_sphere():
    a, b = torch.randn(2, 20, 3, 4, dtype=torch.float64)  # a code may have any shape
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    z = interpolate_spherically(a, b, t).flatten(2)
    norms = interpolate_linearly(
        a.flatten(1).norm(dim=1, keepdim=True), b.flatten(1).norm(dim=1, keepdim=True), t
    ).squeeze(2)
    torch.testing.assert_close(z.norm(dim=2), norms)  # constant if both norms are equal
    unit = z / z.norm(dim=2, keepdim=True)
    steps = (unit[:, 1:] * unit[:, :-1]).sum(2).clamp(-1, 1).acos()
    torch.testing.assert_close(
        steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=1e-6, atol=1e-8
    )  # the direction turns evenly
    assert torch.equal(z[:, 0], a.flatten(1)) and torch.equal(z[:, -1], b.flatten(1))


def test_spherical_path_keeps_shared_values_and_handles_equal_directions():
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    b[:, 3:] = a[:, 3:]  # a class that both share
    b[1], b[2], b[3] = a[1], 2 * a[2], -a[3]
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    z = interpolate_spherically(a, b, t)
    assert torch.isfinite(z).all() and (z[[0, 4, 5], :, 3:] == a[[0, 4, 5], None, 3:]).all()
    torch.testing.assert_close(z[2], interpolate_linearly(a, b, t)[2])
    assert torch.equal(z[1], a[1].expand(5, -1))


def test_interpolation_between_classes_starts_and_ends_in_them(ask):
    ways = ask("interpolate", "gan", label=(3, 8), n=2, frames=3)
    assert ways["z"][:, 0, 8:].argmax(1).tolist() == [3, 3] and ways["z"][:, -1, 8:].argmax(
        1
    ).tolist() == [8, 8]


def test_traverse_moves_one_dimension_at_a_time(ask, train_run):
    model = load(train_run(*RUNS["pca"])).model
    found = ask("traverse", "pca", n=6, frames=3, range_sigma=2.0)
    spread = (
        model.covariance.loading_norms[0] * 1.0
    ).flatten()  # the prior is N(0, 1), nearly so in 10,000 draws
    torch.testing.assert_close(found["effect"].float(), (4 * spread).square(), rtol=0.05, atol=0)
    order = found["effect"].argsort(descending=True)
    assert found["dims"].tolist() == order.tolist()
    for row, k in zip(found["frames"], order, strict=True):
        moved = (row[2] - row[0]).flatten()
        cosine = torch.nn.functional.cosine_similarity(
            moved, model.decode(torch.eye(6)).flatten(1)[k] - model.mean[0], dim=0
        )
        assert cosine > 0.9999
    start = ask("traverse", "pca", item=7, frames=3)["start"]
    torch.testing.assert_close(start, ask("encode", "pca", items=[7])["z"][0])


def test_two_dimensional_codes_are_shown_as_a_map(ask, tmp_path):
    ask("traverse", "vae", frames=3)
    (whole,) = (tmp_path / "asked").glob("*manifold.png")
    picture = read_picture_from_sheet_png(whole.read_bytes())
    assert picture.images.shape == (400, 8, 8, 3) and picture.columns == 20  # 20 × 20 codes
    assert Image.open(whole).width >= 20 * 8 * 10, "8×8 images are enlarged"


# --- arithmetic -----------------------------------------------------------------------------------


def test_arithmetic_adds_mean_codes(ask):
    z, y = (ask("encode", "ae")[key] for key in ("z", "y"))
    of = lambda *classes: z[torch.isin(y, torch.tensor(classes))].mean(0)  # noqa: E731
    found = ask("arithmetic", "ae", a=[7, 9], b=1, c=[0], n=10_000)
    torch.testing.assert_close(found["z"][-1], of(7, 9) - of(1) + of(0))
    torch.testing.assert_close(found["z"][1], of(1))
    direction = ask("arithmetic", "ae", attribute=3, n=10_000, rows=2, strengths=[0.0, 1.0])
    expected = of(3) - of(*(k for k in range(10) if k != 3))
    torch.testing.assert_close(direction["direction"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        direction["z"][:, 1] - direction["z"][:, 0], expected.expand(2, -1), rtol=1e-4, atol=1e-5
    )
    assert 3 not in direction["y"]


def test_arithmetic_accepts_item_indices(ask):
    back = ask("reconstruct", "ae", items=[6])["reconstruction"]
    torch.testing.assert_close(
        ask("arithmetic", "ae", group_by="item", a=[2, 6], b=2, c=6)["x"][-2], back[0]
    )


def test_arithmetic_uses_the_draws_of_sample(ask, train_run):
    model = load(train_run(*RUNS["gan"])).model  # training draws random numbers
    torch.manual_seed(4)
    shown = model.sample(9)
    found = ask("arithmetic", "gan", group_by="draw", n=9, seed=4, a=[5], b=[5], c=[7])
    torch.testing.assert_close(found["x"], shown[[5, 5, 7, 7]])


# --- inpaint --------------------------------------------------------------------------------------

PICTURE = DataSpec(shape=(3, 6, 8))


def plane(mask: str, **options) -> torch.Tensor:
    seed = options.pop("seed", 0)
    hidden = corruptions.hidden_value_mask(corruptions.Mask(mask, **options), PICTURE, 4, seed=seed)
    assert hidden.shape == (4, 3, 6, 8) and (hidden == hidden[:, :1]).all(), (
        "all channels of a pixel are hidden"
    )
    return hidden[:, 0]


def test_masks_hide_the_described_pixels(tmp_path):
    box = plane("box", box=[1, 2, 3, 4])
    assert box[:, 1:4, 2:6].all() and box.sum() == 4 * 12
    assert plane("box")[0].nonzero().amin(0).tolist() == [1, 2] and plane("box")[0].sum() == 3 * 4
    for one, other in (("left", "right"), ("top", "bottom")):
        assert (
            torch.equal(plane("half", half=one), ~plane("half", half=other))
            and plane("half", half=one).sum() == 4 * 24
        )
    assert plane("half", half="top")[0, 0].all() and plane("half", half="left")[0, :, 0].all()
    for share in (0.0, 0.25, 0.5, 1.0):
        random = plane("random", ratio=share)
        assert random.flatten(1).sum(1).tolist() == [48 * share] * 4
    assert (plane("random")[0] != plane("random")[1]).any() and (
        plane("random") != plane("random", seed=1)
    ).any()
    Image.fromarray(plane("box")[0].numpy()).save(tmp_path / "mask.png")
    assert torch.equal(plane(str(tmp_path / "mask.png")), plane("box"))
    Image.new("L", (8, 8)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="8×8 pixels, but the data has 6×8"):
        plane(str(tmp_path / "large.png"))


@pytest.mark.parametrize(
    ("name", "method"),
    [("vae", "inpaint"), ("vae", "search"), ("rbm", "inpaint"), ("pca", "search")],
)
def test_inpainting_keeps_known_values_and_measures_the_hidden_ones(name, method, ask, train_run):
    found = ask(
        "inpaint", name, method=method, mask="random", mask_ratio=0.25, n=5, draws=2, steps=4
    )
    x, hidden, filled = found["x"][:, None], found["hidden"][:, None], found["filled"]
    assert torch.equal(torch.where(hidden, 0, filled), torch.where(hidden, 0, x).expand_as(filled))
    assert found["hidden_fraction"] == 0.25 and filled.shape == (5, 2, 1, 8, 8)
    error = lambda guess: (x - guess).double().square().flatten(2).sum(2).mean().item()  # noqa: E731
    assert found["squared_error_per_draw"]["value"] == pytest.approx(error(filled), rel=1e-6)
    plain = torch.where(hidden, found["mean_fill"], x)
    assert found["squared_error_of_mean_fill"]["value"] == pytest.approx(error(plain), rel=1e-6)
    train = load(train_run(*RUNS[name])).dataset.head("train").x
    torch.testing.assert_close(found["mean_fill"], train.mean(0))


class NearestMean:
    """A classifier of digits without training: the class whose mean is nearest."""

    def __init__(self, dataset, device) -> None:
        self.conditions = {"features": "classifier of the tests"}
        train = dataset.head_as_uint8_images("train")
        self.means = torch.stack(
            [train.x[train.y == k].float().mean(0).flatten() for k in range(10)]
        )

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, -torch.cdist(x.flatten(1).float(), self.means)


def test_classify_fills_reports_how_often_the_class_is_kept(ask, monkeypatch):
    monkeypatch.setitem(features.EXTRACTORS, "classifier", NearestMean)
    kept = {}
    for share in (0.0, 1.0):  # nothing and everything is hidden
        found = ask(
            "inpaint",
            "vae",
            method="inpaint",
            mask="random",
            mask_ratio=share,
            n=100,
            draws=2,
            steps=4,
            classify_fills=True,
        )
        kept[share] = found["class_kept"]["value"]
        assert (
            found["class_found_in_items"]["value"] > 0.8
            and found["features"] == "classifier of the tests"
        )
    assert kept[0.0] == found["class_found_in_items"]["value"] and kept[1.0] < 0.4


def test_latent_search_with_a_linear_decoder_solves_least_squares(train_run):
    model = load(train_run(*RUNS["pca"])).model
    usual = model.prior(2000)
    x = load(train_run(*RUNS["pca"])).dataset.head("test", 6).x
    known = ~corruptions.hidden_value_mask(
        corruptions.Mask("half", half="right"), DataSpec(shape=(1, 8, 8)), 6, seed=0
    )
    weight = 0.3
    search = latent_search.LatentSearch(usual, weight, steps=800)
    z, left = latent_search.optimize_codes(model.decode, x, known, search)
    middle, spread = usual.mean(0).double(), usual.std(0).double()
    c = model.decode(middle[None].float()).flatten().double()
    A = (
        model.decode((middle + torch.diag(spread)).float()).flatten(1).double() - c
    ).T  # (64, 6): G(m + s ∘ u) = c + A u
    rows = known[0].flatten()
    u = torch.linalg.solve(
        A[rows].T @ A[rows] + weight * torch.eye(6),
        A[rows].T @ (x.flatten(1).double() - c)[:, rows].T,
    ).T
    torch.testing.assert_close(z.double(), middle + spread * u, rtol=0, atol=2e-3)
    least = ((x.flatten(1).double() - c - u @ A.T)[:, rows]).square().sum(
        1
    ) + weight * u.square().sum(1)
    torch.testing.assert_close(left.double(), least, rtol=1e-5, atol=0)


def test_latent_search_refuses_a_decoder_without_gradient():
    def round_codes(z: torch.Tensor) -> torch.Tensor:
        return z.round().detach()

    with pytest.raises(UserError, match="no gradient"):
        latent_search.optimize_codes(
            round_codes,
            torch.zeros(1, 2),
            torch.ones(1, 2) > 0,
            latent_search.LatentSearch(torch.randn(9, 2), prior_weight=1.0, steps=1),
        )


def test_vae_inpainting_chain_draws_from_the_conditional_distribution():
    """A linear VAE with its exact posterior is Gaussian: x ~ N(b, w wᵀ + σ² I).

    Its conditional distributions are known.
    """
    vae = VAE(
        DataSpec(shape=(3,), kind="points", levels=0),
        hidden=(),
        latent=1,
        likelihood="gaussian",
        sigma=0.8,
    ).double()
    w, b, sigma = (
        torch.tensor([1.0, -0.7, 1.5]).double(),
        torch.tensor([0.3, 1.0, -2.0]).double(),
        0.8,
    )
    precision = 1 + w @ w / sigma**2
    with torch.no_grad():
        nets = (vae.decoder, vae.encoder)
        decoder, encoder = (
            next(m for m in net.modules() if isinstance(m, torch.nn.Linear)) for net in nets
        )
        decoder.weight.copy_(w[:, None]), decoder.bias.copy_(b)
        encoder.weight.copy_(torch.stack([w / sigma**2 / precision, torch.zeros(3)]))
        encoder.bias.copy_(torch.stack([-(w @ b) / sigma**2 / precision, -precision.log()]))
    x = torch.tensor([2.0, 9.0, 9.0]).double().expand(20_000, -1)
    filled = vae.inpaint(x, torch.tensor([True, False, False]).expand(20_000, -1), steps=40)
    # z given only x₀ is N(m, v); the filled values are w z + b
    v = 1 / (1 + w[0] ** 2 / sigma**2)
    m = v * w[0] * (2.0 - b[0]) / sigma**2
    assert (filled[:, 0] == 2).all()
    torch.testing.assert_close(
        filled[:, 1:].mean(0),
        w[1:] * m + b[1:],
        rtol=0,
        atol=5 * (w.abs().max() * v.sqrt()).item() / 141,
    )
    torch.testing.assert_close(filled[:, 1:].std(0), w[1:].abs() * v.sqrt(), rtol=0.03, atol=0)


# --- denoise --------------------------------------------------------------------------------------


def test_noise_has_the_requested_level():
    spec = DataSpec(shape=(1, 50, 50), range=(-1.0, 3.0))
    x = torch.ones(40, 1, 50, 50, dtype=torch.float64)
    gaussian = corruptions.add_noise(x, spec, "gaussian", 0.25)
    assert gaussian.std().item() == pytest.approx(
        0.25 * 4, rel=0.02
    ) and gaussian.mean().item() == pytest.approx(1, abs=0.02)
    masked = corruptions.add_noise(x, spec, "masking", 0.3)
    assert set(masked.unique().tolist()) == {-1, 1} and (
        masked == -1
    ).double().mean().item() == pytest.approx(0.3, abs=0.01)
    pepper = corruptions.add_noise(x, spec, "salt_and_pepper", 0.3)
    assert set(pepper.unique().tolist()) == {-1, 1, 3}
    assert (pepper == -1).double().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(corruptions.add_noise(x, spec, "masking", 0.0), x)


def test_denoise_measures_the_error_before_and_after(ask):
    found = ask("denoise", "rbm", noise="salt_and_pepper", level=0.2, n=20)
    for when, key in (("before", "noisy"), ("after", "denoised")):
        each = (found["x"] - found[key]).double().square().flatten(1).sum(1)
        assert found[f"squared_error_{when}"]["value"] == pytest.approx(
            each.mean().item(), rel=1e-6
        )
    assert items_and_codes.finite_psnr_per_item(found["x"], found["x"], 1.0).isfinite().all(), (
        "finite without any noise too"
    )
