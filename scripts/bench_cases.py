"""What `bench.py` measures: each case trains a genlab model or samples from it, others taking turns, and returns its rows."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import bench_loops as hand
import torch
import torch.nn.functional as F
from bench_turns import How, Other, Row, Turn, against, built, in_turns, package, repeated
from torch import Tensor, nn

# --- (a) the loop by hand ---------------------------------------------------------------------------------------------

BY_HAND = "the loop by hand"
LOOP = 1.03  # the bar for steps of at least 10 ms
KEPT = ("trainer.log_every=50", "trainer.save_every=100", "trainer.preview_every=0")


def data_of(options: tuple[str, ...]) -> Tensor:
    """Return the training images that these options give, as bytes (N, C, H, W)."""
    return built(*options, "device=cpu", "out=unused")[1].arrays("train")[0]


def small_vae(how: How) -> tuple[str, ...]:
    return how.mnist(
        "model=vae", "model.hidden=[400]", "model.activation=relu", "trainer.batch_size=128"
    )


def vae_loop(how: How) -> dict[str, Row]:
    ours = small_vae(how)
    step = hand.vae(data_of(ours).flatten(1), 128)
    what = "VAE 784–400–20 on MNIST, batch 128, with logging, previews and checkpoints"
    return against(
        how, what, ours, {"vae_loop": Other(BY_HAND, repeated(step))}, steps=4 * 469, block=67
    )


def dcgan_loop(how: How) -> dict[str, Row]:
    ours = (
        "model=dcgan",
        "model.width=32",
        "dataset.size=32",
        "trainer.batch_size=64",
        "trainer.ema=0.999",
        *KEPT,
    )
    model = built(*ours, "device=cpu", "out=unused")[2].model
    step = hand.dcgan(model, data_of(ours), 64, ema=0.999)
    what = "DCGAN 32×32, 32 maps, batch 64, with logging, EMA and checkpoints"
    return against(
        how,
        what,
        ours,
        {"dcgan_loop": Other(BY_HAND, repeated(step), bar=LOOP)},
        steps=400,
        block=5,
    )


def small_unet(how: How) -> tuple[str, ...]:
    return ("model=ddpm_small", "dataset=digits", "dataset.size=28", "trainer.log_every=50", "trainer.save_every=50",
            "trainer.preview_every=0")  # fmt: skip


def unet_loop(how: How) -> dict[str, Row]:
    ours = small_unet(how)
    model = built(*ours, "device=cpu", "out=unused")[2].model
    step = hand.ddpm(
        model.network, model.schedule.alphas_bar, data_of(ours), 64, lr=2e-3, ema=0.998, clip=1.0
    )
    what = "DDPM's U-Net 28×28, batch 64, with logging, EMA, clipping and checkpoints"
    return against(
        how, what, ours, {"unet_loop": Other(BY_HAND, repeated(step), bar=LOOP)}, steps=160, block=2
    )


# --- (b) what a user would take instead -------------------------------------------------------------------------------

BY_EPOCHS = "VAE 784–400–20 on MNIST, batch 128, by epochs"


def vae_loaders(how: How) -> dict[str, Row]:
    def other(workers: int) -> Other:
        what = (
            f"the usual example: torchvision's MNIST, ToTensor, DataLoader with {workers} workers"
        )
        if how.fake:
            return Other(what, absent="it reads MNIST's files")
        turn = repeated(hand.usual(os.environ["GENLAB_DATA"], 128, workers))
        return Other(what, turn, bar=1 / 3 if workers == 2 else None)

    others = {f"vae_loader_{workers}": other(workers) for workers in (0, 1, 2)}
    # by whole epochs: at their ends the workers have nothing left to fetch, which they would do in another's turn
    return against(how, BY_EPOCHS, small_vae(how), others, steps=4 * 469, block=469)


def vae_pythae(how: How) -> dict[str, Row]:
    other = package("pythae", pythae, data_of(small_vae(how)))
    return against(how, BY_EPOCHS, small_vae(how), {"vae_pythae": other}, steps=4 * 468, block=468)


def pythae(data: Tensor) -> Other:
    """Return pythae's TrainingPipeline on the same network, an epoch of so many batches at each turn."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    logging.disable(logging.WARNING)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = hand.HandVAE()

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.net.encode(x.flatten(1))
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, net: hand.HandVAE) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net.decode(z).sigmoid().view(-1, 1, 28, 28))

    encoder = Encoder()
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    model, x = VAE(config, encoder, Decoder(encoder.net)), data.float() / 255

    def turn(steps: int) -> None:
        with (
            tempfile.TemporaryDirectory() as place,
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):
            epoch = BaseTrainerConfig(
                output_dir=place,
                num_epochs=1,
                per_device_train_batch_size=128,
                learning_rate=1e-3,
                no_cuda=True,
            )
            TrainingPipeline(model, epoch)(train_data=x[: steps * 128])

    return Other("pythae's TrainingPipeline, the same network", turn, bar=1 / 3)


def rbm(how: How) -> dict[str, Row]:
    ours = how.mnist(
        "model=rbm", "model.hidden=256", "trainer.batch_size=100", "trainer.preview_every=0"
    )
    data = data_of(ours).flatten(1)
    on = data.numpy() > 127

    def machine(dtype: str) -> Turn:
        from sklearn.neural_network import BernoulliRBM

        x = on.astype(dtype)
        model = BernoulliRBM(n_components=256, batch_size=100, n_iter=1, learning_rate=0.05)
        return lambda steps: model.fit(x[: steps * 100])

    others = {
        "rbm_loop": Other(BY_HAND, repeated(hand.rbm(data, 100, hidden=256))),
        "rbm_sklearn": Other(
            "scikit-learn's BernoulliRBM, float64 (its default)", machine("float64"), bar=0.8
        ),
        "rbm_sklearn_float32": Other("scikit-learn's BernoulliRBM, float32", machine("float32")),
    }
    what = "RBM 784–256 on MNIST, PCD-1, batch 100"
    return against(how, what, ours, others, steps=2 * 600, block=100)


def descent(model: nn.Module, loss: Callable[[], Tensor], *, lr: float, clip: float = 0.0) -> Turn:
    """Return plain descent as these packages' own examples do it, with PyTorch's Adam as it is by default."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return repeated(step)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def unets(how: How) -> dict[str, Row]:
    data = data_of(small_unet(how))
    others = {
        "unet_denoising_diffusion_pytorch": package(
            "denoising_diffusion_pytorch", lucidrains_unet, data
        ),
        "unet_diffusers": package("diffusers", diffusers_unet, data),
    }
    what = (
        "a step of DDPM's U-Net 28×28, widths 16–32–32, batch 64, with EMA, logging and checkpoints"
    )
    return against(how, what, small_unet(how), others, steps=60, block=2)


def drawn(data: Tensor, n: int) -> Callable[[], Tensor]:
    """Return what gives n items of the data each time, epoch after epoch in random order; bytes as [−1, 1]."""
    order = hand.picks(len(data), n, torch.device("cpu"))
    if data.dtype == torch.uint8:
        return lambda: data[next(order)].float().div_(127.5).sub_(1)
    return lambda: data[next(order)]


def lucidrains_unet(data: Tensor) -> Other:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    images = drawn(data, 64)
    net = Unet(dim=16, dim_mults=(1, 2, 2), channels=1)
    model = GaussianDiffusion(
        net, image_size=28, timesteps=1000, objective="pred_noise", auto_normalize=False
    )
    turn = descent(model, lambda: model(images()), lr=2e-3, clip=1.0)
    return Other("denoising-diffusion-pytorch, widths 16–32–32 too", turn, parameters=size(net))


def diffusers_unet(data: Tensor) -> Other:
    from diffusers import DDPMScheduler, UNet2DModel

    images = drawn(data, 64)
    down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    net = UNet2DModel(
        28, 1, 1, layers_per_block=1, block_out_channels=(16, 32, 32), norm_num_groups=4, attention_head_dim=None,
        down_block_types=down, up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")

    def loss() -> Tensor:
        x, t = images(), torch.randint(1000, (64,))
        eps = torch.randn_like(x)
        return F.mse_loss(net(schedule.add_noise(x, eps, t), t).sample, eps)

    turn = descent(net, loss, lr=2e-3, clip=1.0)
    return Other("diffusers' UNet2DModel, widths 16–32–32 too", turn, bar=0.9, parameters=size(net))


def flows(how: How) -> dict[str, Row]:
    ours = ("model=realnvp_points", "dataset=ring", "trainer.preview_every=0")
    data = data_of(ours)
    others = {
        "realnvp_normflows": package("normflows", normflows_coupling, data),
        "realnvp_zuko": package("zuko", zuko_coupling, data),
    }
    what = "a step of RealNVP on points of a ring, 16 couplings 64–64, batch 256, with logging and checkpoints"
    return against(how, what, ours, others, steps=1000, block=50)


def normflows_coupling(data: Tensor) -> Other:
    import normflows as nf

    chain, points = [], drawn(data, 256)
    for _ in range(16):
        net = nf.nets.MLP([1, 64, 64, 2], init_zeros=True)
        chain += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(2, mode="swap")]
    model = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(2), chain)
    turn = descent(model, lambda: model.forward_kld(points()), lr=2e-3)
    return Other("normflows, as many couplings as wide", turn, parameters=size(model))


def zuko_coupling(data: Tensor) -> Other:
    from zuko.flows import RealNVP

    points, model = drawn(data, 256), RealNVP(2, transforms=16, hidden_features=(64, 64))
    turn = descent(model, lambda: -model().log_prob(points()).mean(), lr=2e-3)
    return Other("zuko, as many couplings as wide", turn, parameters=size(model))


def splines(how: How) -> dict[str, Row]:
    data = data_of(("model=nsf", "dataset=ring"))
    rows = {}
    for name, options, network in (
        ("nsf_zuko", ("model.hidden=[64,64]", "model.bins=16"), "the same network"),
        ("nsf_recipe_zuko", (), "the recipe's wider network"),
    ):
        ours = ("model=nsf", *options, "dataset=ring", "trainer.preview_every=0")
        what = f"a step of an autoregressive spline flow on points, {network}, batch 512, with logging and checkpoints"
        rows |= against(
            how, what, ours, {name: package("zuko", zuko_spline, data)}, steps=600, block=20
        )
    return rows


def zuko_spline(data: Tensor) -> Other:
    from zuko.flows import NSF

    points, model = drawn(data, 512), NSF(2, transforms=3, bins=16, hidden_features=(64, 64))
    turn = descent(model, lambda: -model().log_prob(points()).mean(), lr=1e-3)
    return Other("zuko, 3 layers 64–64 of 16 bins", turn, bar=1.0, parameters=size(model))


# --- (c) sampling -----------------------------------------------------------------------------------------------------


def sampling(how: How) -> dict[str, Row]:
    rows = {}
    vae = built(*small_vae(how), "device=cpu", "out=unused")[2].model.eval()
    by_hand = hand.HandVAE()

    def draw_vae(_: int) -> None:
        with torch.no_grad():
            by_hand.decode(torch.randn(1000, 20)).sigmoid()

    rows["sample_vae"] = in_turns(
        how,
        "VAE 784–400–20, 1,000 items at a time",
        lambda: vae.sample(1000),
        Other(BY_HAND, draw_vae),
        rounds=200,
        items=1000,
    )
    options = ("model=dcgan", "model.width=32", "dataset.size=32", "trainer.batch_size=64")
    gan = built(*options, "device=cpu", "out=unused")[2].model.eval()

    def draw_gan(_: int) -> None:
        with torch.no_grad():
            gan.generator(torch.rand(64, 100) * 2 - 1)

    rows["sample_dcgan"] = in_turns(
        how,
        "DCGAN 32×32, 32 maps, 64 items at a time",
        lambda: gan.sample(64),
        Other(BY_HAND, draw_gan),
        rounds=100,
        items=64,
    )
    model = built(*small_unet(how), "device=cpu", "out=unused")[2].model.eval()
    n, steps = (16, 50) if how.share == 1 else (2, 3)

    def draw_unet(_: int) -> None:
        hand.ddim(model.network, model.schedule.alphas_bar, (n, 1, 28, 28), steps)

    rows["sample_ddim"] = in_turns(
        how, f"DDPM's U-Net 28×28, DDIM with {steps} steps, {n} items at a time",
        lambda: model.sample(n, sampler="ddim", steps=steps), Other(BY_HAND, draw_unet), rounds=6, items=n,
    )  # fmt: skip
    return rows


def cached_sampling(how: How) -> dict[str, Row]:
    """Autoregressive sampling with keys and values kept, against the plain loop that runs the whole prefix for each token."""
    side, length = (28, 1024) if how.share == 1 else (4, 16)
    text = (
        "model=gpt_text",
        "model.layers=4",
        "model.heads=4",
        "model.width=128",
        f"dataset.length={length}",
    )
    pixels = ("model=gpt_pixels", "dataset=fake", f"dataset.shape=[1,{side},{side}]")
    cases = {
        f"{side * side} pixels, 8 layers of width 64": pixels,
        f"{length:,} characters, 4 layers of width 128": text,
    }
    rows = {}
    for what, options in cases.items():
        model = built(*options, "device=cpu", "out=unused")[2].model.eval()

        def draw(*, cache: bool, model: nn.Module = model) -> Tensor:
            torch.manual_seed(0)
            return model.sample(4, cache=cache)

        plain = Other(
            "the plain loop: the whole prefix for each token",
            lambda _: draw(cache=False),
            bar=1 / 8,
        )
        same = torch.equal(draw(cache=True), draw(cache=False))
        what = f"sampling with the key–value cache, {what}, 4 at a time" + (
            "" if same else ": OTHER SAMPLES"
        )
        rows[f"sample_{options[0].partition('=')[2]}"] = in_turns(
            how, what, lambda: draw(cache=True), plain, rounds=4, items=4
        )
    return rows


CASES: dict[str, Callable[[How], dict[str, Row]]] = {
    f.__name__: f for f in (
        vae_loop, dcgan_loop, unet_loop, vae_loaders, vae_pythae, rbm, unets, flows, splines, sampling, cached_sampling
    )
}  # fmt: skip
