"""The commands that ask a run's model: reconstruct, encode, interpolate, traverse, arithmetic, inpaint, denoise."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.abilities import ABILITIES, abilities
from genlab.builders import entrypoints
from genlab.commands import COMMANDS
from genlab.commands.interpolate import linear, spherical
from genlab.data.degradations import TASKS
from genlab.errors import UserError
from genlab.inference import corruptions, latent_search, queries, requirements
from genlab.models.vae.vae import VAE
from genlab.spec import Spec

RUNS = {  # small ones of every sort of ability
    "vae": ("model=vae", "model.latent=2"),
    "cvae": ("model=cvae", "model.latent=4"),
    "ae": ("model=ae", "model.hidden=[]", "model.output=linear", "model.latent=5"),
    "pca": ("model=pca", "model.latent=6"),
    "gan": ("model=gan", "model.latent=8", "model.hidden=[16]", "model.conditional=true"),
    "rbm": ("model=rbm", "model.hidden=12", "model.chains=4"),
    "flow": ("model=realnvp_points", "model.couplings=2", "dataset.n=1000"),
    "ddpm": ("model=ddpm_points", "dataset.n=1000"),
}
ASKED = {  # what each command is asked beside its defaults, so that it takes little time
    "reconstruct": {"n": 30},
    "encode": {"n": 30},
    "interpolate": {"n": 3, "frames": 4, "how": "spherical"},
    "traverse": {"n": 3, "frames": 3},
    "arithmetic": {"by": "draw", "n": 5, "a": [0, 1], "b": 2, "c": 3},
    "inpaint": {"n": 3, "draws": 2, "mask": "random", "steps": 3},
    "denoise": {"n": 30, "noise": "masking"},
}


@pytest.fixture
def ask(trained, tmp_path):
    """`ask("encode", "vae", n=3)` asks a run and returns what it wrote: the JSON and the .npz as one dict."""

    def answer(command: str, name: str, **options) -> dict:
        out = tmp_path / "asked"
        for old in out.glob("*"):
            old.unlink()
        function = getattr(import_module(f"genlab.commands.{command}"), command)
        record = function(loaded(trained(*RUNS[name])), **options, out=str(out))
        (file,), (arrays,) = out.glob("*.json"), out.glob("*.npz")
        assert json.loads(file.read_text()) == json.loads(json.dumps(record))
        with np.load(arrays) as held:
            return {**record, **{key: torch.from_numpy(held[key]) for key in held}}

    return answer


@cache
def loaded(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- every command on every sort of model -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize("name", RUNS)
def test_a_command_writes_the_same_again_or_names_who_can(command, name, trained, tmp_path, capsys):
    run = loaded(trained(*RUNS[name]))
    function = getattr(import_module(f"genlab.commands.{command}"), command)
    options = dict(ASKED[command])
    if command == "arithmetic" and "prior" not in abilities(run.model):
        options["by"] = "item"
    if command not in requirements.commands(run):
        with pytest.raises(
            UserError, match=f"genlab {command} needs .*models that have it: .*(vae|rbm)"
        ):
            function(run, **options)
        return
    if (name, command) == ("ddpm", "denoise"):
        options["noise"] = "gaussian"  # which alone it takes off
    for folder in ("a", "b"):
        function(run, **options, seed=3, out=str(tmp_path / folder))
    made = files(tmp_path / "a")
    assert made == files(tmp_path / "b"), "the same seed, the same bytes"
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
    ("interpolate", "between=prior", "how=spherical", "y=[3,8]", "n=2"),
    ("traverse", "dims=[1,0]", "item=3", "frames=3"),
    ("arithmetic", "a=7", "b=[1,2]", "c=[0]", "n=50"),
    ("arithmetic", "attribute=3", "strengths=[0,1.5]", "n=50"),
    ("inpaint", "box=[1,1,4,5]", "how=search", "steps=3", "n=2"),
]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=lambda words: "-".join(words[:2]))
def test_the_command_line_takes_the_options(words, genlab, trained):
    result = genlab(words[0], f"run={trained(*RUNS['cvae'])}", "device=cpu", "out=here", *words[1:])
    assert result.code == 0, result.err
    assert ".png" in result.out and ".json" in result.out and ".npz" in result.out


REFUSED = [
    ("gan", "interpolate between=data", ["GAN has no encode", "vae", "pca"]),
    ("gan", "arithmetic a=7", ["GAN has no encode", "vae"]),
    ("gan", "interpolate y=11", ["y=11", "classes 0 to 9"]),
    ("vae", "interpolate y=1", ["y=1", "knows no classes", "model.conditional=true"]),
    ("vae", "interpolate between=prior pairs=[[0,1]]", ["pairs=", "between=data"]),
    ("vae", "reconstruct items=[5000]", ["test split", "not 5000"]),
    ("vae", "traverse dims=[2]", ["dims=[2]", "0 to 1"]),
    ("vae", "traverse frames=1", ["frames", "greater than or equal to 2"]),
    ("vae", "arithmetic", ["a=[7] b=[1] c=[0]", "attribute="]),
    ("vae", "arithmetic a=1 attribute=2", ["attribute=<class> alone"]),
    ("vae", "arithmetic a=12", ["classes 0 to 9", "not 12"]),
    ("vae", "arithmetic by=draw n=4 a=4", ["draws 0 to 3"]),
    ("vae", "inpaint mask=holes", ["mask=holes", "box, half and random"]),
    ("vae", "inpaint box=[4,4,5,1]", ["box=[4, 4, 5, 1]", "8×8"]),
    ("flow", "inpaint", ["mask=box", "points", "mask=half"]),
    ("flow", "inpaint mask=half judge=true", ["judge=true", "leave it out"]),
    ("flow", "inpaint how=complete mask=half", ["RealNVP has no complete", "vae"]),
    ("rbm", "denoise noise=masking level=1.5", ["level=1.5", "share"]),
    ("rbm", "project", ["genlab project needs", "rbm", "vae"]),
    ("ddpm", "project", ["genlab project needs decode and gradient and prior", "ddpm", "vae"]),
]


@pytest.mark.parametrize(
    ("name", "words", "said"), REFUSED, ids=[f"{n} {w}" for n, w, _ in REFUSED]
)
def test_a_refusal_says_what_would_be_right(name, words, said, genlab, trained):
    command, *options = words.split()
    error = genlab(command, f"run={trained(*RUNS[name])}", "device=cpu", *options).error
    assert all(word in error for word in said), error


def test_tasks_lists_what_fits(genlab, trained):
    listed = genlab("tasks", f"run={trained(*RUNS['gan'])}").out
    assert all(
        f"genlab {c} run=" in listed
        for c in ("sample", "interpolate", "traverse", "arithmetic", "inpaint")
    )
    assert not any(
        f"genlab {c} run=" in listed for c in ("reconstruct", "encode", "denoise", "complete")
    )


def test_every_command_with_a_need_is_one():
    assert requirements.NEEDS.keys() <= COMMANDS.keys()
    words = {word for ways in requirements.NEEDS.values() for way in ways for word in way}
    assert {word for word in words if not word.startswith("task=")} <= {
        *ABILITIES,
        requirements.CLASSES,
        requirements.GRADIENT,
    }
    assert {word.removeprefix("task=") for word in words if word.startswith("task=")} <= {
        *TASKS.values(),
        "forecast",
    }


def test_items_are_those_with_the_numbers(trained):
    dataset = loaded(trained(*RUNS["pca"])).dataset
    raw, labels = dataset.arrays("test")
    held = dataset.items("test", torch.tensor([5, 0, 5]))
    assert torch.equal(held.y, labels[[5, 0, 5]])
    bins = raw[[5, 0, 5]] / 17  # dequantised: each value lies in its bin
    assert ((held.x >= bins - 1e-6) & (held.x <= bins + 1 / 17 + 1e-6)).all()


# --- reconstruct, encode ----------------------------------------------------------------------------------------------


def test_reconstruction_errors_are_those_of_the_pictures(ask):
    found = ask("reconstruct", "pca", n=40)
    each = (found["x"] - found["reconstruction"]).double().square().flatten(1)  # (40, 64)
    assert found["squared_error"]["value"] == pytest.approx(each.sum(1).mean().item(), rel=1e-6)
    assert found["squared_error"]["error"] == pytest.approx(
        each.sum(1).std().item() / 40**0.5, rel=1e-6
    )
    assert found["psnr_db"]["value"] == pytest.approx(
        (-10 * each.mean(1).log10()).mean().item(), rel=1e-6
    )  # range [0, 1]


def test_codes_are_the_models(ask, trained):
    run = loaded(trained(*RUNS["ae"]))
    found = ask("encode", "ae", items=[4, 1])
    held = run.dataset.items("test", torch.tensor([4, 1]))
    torch.testing.assert_close(found["z"], run.model.encode(held.x).detach())
    assert (
        torch.equal(found["y"], held.y)
        and found["index"].tolist() == [4, 1]
        and found["code"] == [5]
    )
    assert len(ask("encode", "ae", split="validation")["z"]) == run.dataset.size("validation"), (
        "all, unless n is given"
    )


# --- interpolate, traverse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["linear", "spherical"])
def test_the_ends_are_the_reconstructions(how, ask):
    ways = ask("interpolate", "ae", how=how, pairs=[(3, 8), (5, 5)], frames=5)
    back = ask("reconstruct", "ae", items=[3, 5, 8, 5])["reconstruction"]
    torch.testing.assert_close(ways["frames"][:, 0], back[:2])
    torch.testing.assert_close(ways["frames"][:, -1], back[2:])
    assert ways["index"].tolist() == [[3, 8], [5, 5]]
    torch.testing.assert_close(
        ways["frames"][1], back[1].expand(5, -1, -1, -1), msg="from an item to itself nothing moves"
    )


def test_a_straight_way_is_evenly_cut_and_no_shorter_than_the_distance(ask):
    ways = ask("interpolate", "ae", n=4, frames=6)
    torch.testing.assert_close(ways["z"][:, 2], 0.6 * ways["z"][:, 0] + 0.4 * ways["z"][:, -1])
    steps = ways["frames"].double().diff(dim=1).flatten(2).norm(dim=2)  # (4, 5)
    assert ways["length_of_the_way"]["value"] == pytest.approx(steps.sum(1).mean().item(), rel=1e-6)
    assert ways["longest_step"]["value"] == pytest.approx(
        steps.max(1).values.mean().item(), rel=1e-6
    )
    assert ways["length_of_the_way"]["value"] >= ways["distance"]["value"] - 1e-6


def test_spherical_ways_keep_to_the_sphere():
    a, b = torch.randn(2, 20, 3, 4, dtype=torch.float64)  # a code may have any shape
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    z = spherical(a, b, t).flatten(2)
    norms = linear(
        a.flatten(1).norm(dim=1, keepdim=True), b.flatten(1).norm(dim=1, keepdim=True), t
    ).squeeze(2)
    torch.testing.assert_close(z.norm(dim=2), norms)  # of equal norms: constant
    unit = z / z.norm(dim=2, keepdim=True)
    steps = (unit[:, 1:] * unit[:, :-1]).sum(2).clamp(-1, 1).acos()
    torch.testing.assert_close(
        steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=1e-6, atol=1e-8
    )  # it turns evenly
    assert torch.equal(z[:, 0], a.flatten(1)) and torch.equal(z[:, -1], b.flatten(1))


def test_spherical_ways_leave_what_both_ends_share_and_survive_having_no_angle():
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    b[:, 3:] = a[:, 3:]  # a class that both are of
    b[1], b[2], b[3] = a[1], 2 * a[2], -a[3]
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    z = spherical(a, b, t)
    assert torch.isfinite(z).all() and (z[[0, 4, 5], :, 3:] == a[[0, 4, 5], None, 3:]).all()
    torch.testing.assert_close(z[2], linear(a, b, t)[2])
    assert torch.equal(z[1], a[1].expand(5, -1))


def test_ways_between_classes_are_of_these_classes(ask):
    ways = ask("interpolate", "gan", y=(3, 8), n=2, frames=3)
    assert ways["z"][:, 0, 8:].argmax(1).tolist() == [3, 3] and ways["z"][:, -1, 8:].argmax(
        1
    ).tolist() == [8, 8]


def test_traverse_moves_one_dimension(ask, trained):
    model = loaded(trained(*RUNS["pca"])).model
    found = ask("traverse", "pca", n=6, frames=3, span=2.0)
    spread = (
        model.covariance.scale[0] * 1.0
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


def test_a_plane_of_codes_is_shown_whole(ask, tmp_path):
    ask("traverse", "vae", frames=3)
    (whole,) = (tmp_path / "asked").glob("*manifold.png")
    assert Image.open(whole).size == (20 * 48, 20 * 48)  # 20 × 20 codes, 8×8 images enlarged


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_sums_are_of_mean_codes(ask):
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


def test_items_go_by_their_numbers(ask):
    back = ask("reconstruct", "ae", items=[6])["reconstruction"]
    torch.testing.assert_close(
        ask("arithmetic", "ae", by="item", a=[2, 6], b=2, c=6)["x"][-2], back[0]
    )


def test_draws_are_those_that_sample_shows(ask, trained):
    model = loaded(trained(*RUNS["gan"])).model  # training draws random numbers
    torch.manual_seed(4)
    shown = model.sample(9)
    found = ask("arithmetic", "gan", by="draw", n=9, seed=4, a=[5], b=[5], c=[7])
    torch.testing.assert_close(found["x"], shown[[5, 5, 7, 7]])


# --- inpaint ----------------------------------------------------------------------------------------------------------

PICTURE = Spec(shape=(3, 6, 8))


def plane(mask: str, **options) -> torch.Tensor:
    defaults = {"box": None, "side": "bottom", "share": 0.5, "seed": 0}
    hidden = corruptions.hidden(PICTURE, mask, 4, **(defaults | options))
    assert hidden.shape == (4, 3, 6, 8) and (hidden == hidden[:, :1]).all(), (
        "a pixel is hidden in all of its channels"
    )
    return hidden[:, 0]


def test_masks_hide_what_they_say(tmp_path):
    box = plane("box", box=[1, 2, 3, 4])
    assert box[:, 1:4, 2:6].all() and box.sum() == 4 * 12
    assert plane("box")[0].nonzero().amin(0).tolist() == [1, 2] and plane("box")[0].sum() == 3 * 4
    for one, other in (("left", "right"), ("top", "bottom")):
        assert (
            torch.equal(plane("half", side=one), ~plane("half", side=other))
            and plane("half", side=one).sum() == 4 * 24
        )
    assert plane("half", side="top")[0, 0].all() and plane("half", side="left")[0, :, 0].all()
    for share in (0.0, 0.25, 0.5, 1.0):
        random = plane("random", share=share)
        assert random.flatten(1).sum(1).tolist() == [48 * share] * 4
    assert (plane("random")[0] != plane("random")[1]).any() and (
        plane("random") != plane("random", seed=1)
    ).any()
    Image.fromarray(plane("box")[0].numpy()).save(tmp_path / "mask.png")
    assert torch.equal(plane(str(tmp_path / "mask.png")), plane("box"))
    Image.new("L", (8, 8)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="8×8 pixels, and the data has 6×8"):
        plane(str(tmp_path / "large.png"))


@pytest.mark.parametrize(
    ("name", "how"),
    [("vae", "complete"), ("vae", "search"), ("rbm", "complete"), ("pca", "search")],
)
def test_what_is_known_stays_and_errors_are_of_the_rest(name, how, ask, trained):
    found = ask("inpaint", name, how=how, mask="random", share=0.25, n=5, draws=2, steps=4)
    x, hidden, filled = found["x"][:, None], found["hidden"][:, None], found["filled"]
    assert torch.equal(torch.where(hidden, 0, filled), torch.where(hidden, 0, x).expand_as(filled))
    assert found["hidden_share"] == 0.25 and filled.shape == (5, 2, 1, 8, 8)
    error = lambda guess: (x - guess).double().square().flatten(2).sum(2).mean().item()  # noqa: E731
    assert found["squared_error_of_a_draw"]["value"] == pytest.approx(error(filled), rel=1e-6)
    plain = torch.where(hidden, found["mean_fill"], x)
    assert found["squared_error_of_the_mean_fill"]["value"] == pytest.approx(error(plain), rel=1e-6)
    train = loaded(trained(*RUNS[name])).dataset.take("train").x
    torch.testing.assert_close(found["mean_fill"], train.mean(0))


class NearestMean:
    """A classifier of digits that takes no training: the class whose mean is nearest."""

    def __init__(self, dataset, device) -> None:
        self.conditions = {"features": "classifier of the tests"}
        train = dataset.shown("train")
        self.means = torch.stack(
            [train.x[train.y == k].float().mean(0).flatten() for k in range(10)]
        )

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, -torch.cdist(x.flatten(1).float(), self.means)


def test_a_classifier_says_in_how_many_draws_the_class_is_kept(ask, monkeypatch):
    monkeypatch.setattr("genlab.metrics.features.spaces", lambda: {"classifier": NearestMean})
    kept = {}
    for share in (0.0, 1.0):  # nothing hidden, and everything
        found = ask(
            "inpaint",
            "vae",
            how="complete",
            mask="random",
            share=share,
            n=100,
            draws=2,
            steps=4,
            judge=True,
        )
        kept[share] = found["class_kept"]["value"]
        assert (
            found["class_of_the_items_found"]["value"] > 0.8
            and found["features"] == "classifier of the tests"
        )
    assert kept[0.0] == found["class_of_the_items_found"]["value"] and kept[1.0] < 0.4


def test_a_search_through_a_linear_decoder_finds_the_least_squares(trained):
    model = loaded(trained(*RUNS["pca"])).model
    usual = model.prior(2000)
    x = loaded(trained(*RUNS["pca"])).dataset.take("test", 6).x
    known = ~corruptions.hidden(
        Spec(shape=(1, 8, 8)), "half", 6, box=None, side="right", share=0.5, seed=0
    )
    weight = 0.3
    z, left = latent_search.search(model.decode, x, known, usual=usual, weight=weight, steps=800)
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


def test_a_decoder_without_a_gradient_is_refused():
    def rounded(z: torch.Tensor) -> torch.Tensor:
        return z.round().detach()

    with pytest.raises(UserError, match="no gradient"):
        latent_search.search(
            rounded,
            torch.zeros(1, 2),
            torch.ones(1, 2) > 0,
            usual=torch.randn(9, 2),
            weight=1.0,
            steps=1,
        )


def test_the_posterior_chain_draws_from_the_conditional_law():
    """A linear VAE with its exact posterior is a Gaussian: x ~ N(b, w wᵀ + σ² I), whose conditional law is known."""
    vae = VAE(
        Spec(shape=(3,), kind="points", levels=0),
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
    filled = vae.complete(x, torch.tensor([True, False, False]).expand(20_000, -1), steps=40)
    # z given x₀ alone: N(m, v); a completion's values are w z + b
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


# --- denoise ----------------------------------------------------------------------------------------------------------


def test_noise_is_as_strong_as_it_says():
    spec = Spec(shape=(1, 50, 50), range=(-1.0, 3.0))
    x = torch.ones(40, 1, 50, 50, dtype=torch.float64)
    gaussian = corruptions.noisy(x, spec, "gaussian", 0.25)
    assert gaussian.std().item() == pytest.approx(
        0.25 * 4, rel=0.02
    ) and gaussian.mean().item() == pytest.approx(1, abs=0.02)
    masked = corruptions.noisy(x, spec, "masking", 0.3)
    assert set(masked.unique().tolist()) == {-1, 1} and (
        masked == -1
    ).double().mean().item() == pytest.approx(0.3, abs=0.01)
    pepper = corruptions.noisy(x, spec, "salt_and_pepper", 0.3)
    assert set(pepper.unique().tolist()) == {-1, 1, 3}
    assert (pepper == -1).double().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(corruptions.noisy(x, spec, "masking", 0.0), x)


def test_denoising_is_measured_before_and_after(ask):
    found = ask("denoise", "rbm", noise="salt_and_pepper", level=0.2, n=20)
    for when, key in (("before", "noisy"), ("after", "denoised")):
        each = (found["x"] - found[key]).double().square().flatten(1).sum(1)
        assert found[f"squared_error_{when}"]["value"] == pytest.approx(
            each.mean().item(), rel=1e-6
        )
    assert queries.psnr(found["x"], found["x"], 1.0).isfinite().all(), (
        "no noise: finite all the same"
    )
