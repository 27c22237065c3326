"""The benchmark cases: genlab models and baselines that train or sample in turn."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import loops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import (
    Baseline,
    BenchmarkSettings,
    Row,
    TakeSteps,
    build_training_objects,
    compare_calls,
    compare_training,
    make_step_repeater,
    start_package_baseline,
)

# --- the plain PyTorch loop -----------------------------------------------------------------------

PLAIN_LOOP = "plain PyTorch loop"
LOOP_BAR = 1.03  # the bar for steps of at least 10 ms
LOGGING_OPTIONS = ("trainer.log_every=50", "trainer.save_every=100", "trainer.preview_every=0")


def training_data(options: tuple[str, ...]) -> Tensor:
    """Return the training images of a config as bytes (N, C, H, W)."""
    return build_training_objects(*options, "device=cpu", "out=unused")[1].raw_items_and_labels(
        "train"
    )[0]


def vae_options(settings: BenchmarkSettings) -> tuple[str, ...]:
    return settings.mnist_options(
        "model=vae", "model.hidden=[400]", "model.activation=relu", "trainer.batch_size=128"
    )


def vae_loop(settings: BenchmarkSettings) -> dict[str, Row]:
    ours = vae_options(settings)
    step = loops.make_vae_step(training_data(ours).flatten(1), 128)
    what = "VAE 784–400–20 on MNIST, batch 128, with logging, previews and checkpoints"
    return compare_training(
        settings,
        what,
        ours,
        {"vae_loop": Baseline(PLAIN_LOOP, make_step_repeater(step))},
        steps=4 * 469,
        block=67,
    )


def dcgan_loop(settings: BenchmarkSettings) -> dict[str, Row]:
    ours = (
        "model=dcgan",
        "model.width=32",
        "dataset.size=32",
        "trainer.batch_size=64",
        "trainer.ema_decay=0.999",
        *LOGGING_OPTIONS,
    )
    model = build_training_objects(*ours, "device=cpu", "out=unused")[2].model
    step = loops.make_dcgan_step(model, training_data(ours), 64, ema=0.999)
    what = "DCGAN 32×32, 32 maps, batch 64, with logging, EMA and checkpoints"
    return compare_training(
        settings,
        what,
        ours,
        {"dcgan_loop": Baseline(PLAIN_LOOP, make_step_repeater(step), bar=LOOP_BAR)},
        steps=400,
        block=5,
    )


def unet_options(settings: BenchmarkSettings) -> tuple[str, ...]:
    return (
        "model=ddpm_small",
        "dataset=digits",
        "dataset.size=28",
        "trainer.log_every=50",
        "trainer.save_every=50",
        "trainer.preview_every=0",
    )


def unet_loop(settings: BenchmarkSettings) -> dict[str, Row]:
    ours = unet_options(settings)
    model = build_training_objects(*ours, "device=cpu", "out=unused")[2].model
    step = loops.make_ddpm_step(
        model.network,
        model.schedule.alphas_bar,
        training_data(ours),
        64,
        lr=2e-3,
        ema=0.998,
        grad_clip=1.0,
    )
    what = "DDPM's U-Net 28×28, batch 64, with logging, EMA, clipping and checkpoints"
    return compare_training(
        settings,
        what,
        ours,
        {"unet_loop": Baseline(PLAIN_LOOP, make_step_repeater(step), bar=LOOP_BAR)},
        steps=160,
        block=2,
    )


# --- other packages -------------------------------------------------------------------------------

BY_EPOCHS = "VAE 784–400–20 on MNIST, batch 128, by epochs"


def vae_loaders(settings: BenchmarkSettings) -> dict[str, Row]:
    def other(workers: int) -> Baseline:
        what = (
            f"the common example: torchvision's MNIST, ToTensor, DataLoader with {workers} workers"
        )
        if settings.fake_data:
            return Baseline(what, unavailable="it reads MNIST's files")
        turn = make_step_repeater(
            loops.make_dataloader_vae_step(os.environ["GENLAB_DATA"], 128, workers)
        )
        return Baseline(what, turn, bar=1 / 3 if workers == 2 else None)

    others = {f"vae_loader_{workers}": other(workers) for workers in (0, 1, 2)}
    # Turns of whole epochs: at the end of an epoch the workers have nothing left to fetch, so they
    # do not work during the turn of another loop.
    return compare_training(
        settings, BY_EPOCHS, vae_options(settings), others, steps=4 * 469, block=469
    )


def vae_pythae(settings: BenchmarkSettings) -> dict[str, Row]:
    other = start_package_baseline("pythae", pythae_vae, training_data(vae_options(settings)))
    return compare_training(
        settings, BY_EPOCHS, vae_options(settings), {"vae_pythae": other}, steps=4 * 468, block=468
    )


def pythae_vae(data: Tensor) -> Baseline:
    """Return pythae's TrainingPipeline on the same network; each turn is one epoch."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    logging.disable(logging.WARNING)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = loops.PlainVAE()

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.net.encode(x.flatten(1))
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, net: loops.PlainVAE) -> None:
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

    return Baseline("pythae's TrainingPipeline, the same network", turn, bar=1 / 3)


def rbm(settings: BenchmarkSettings) -> dict[str, Row]:
    ours = settings.mnist_options(
        "model=rbm", "model.hidden=256", "trainer.batch_size=100", "trainer.preview_every=0"
    )
    data = training_data(ours).flatten(1)
    on = data.numpy() > 127

    def sklearn_rbm(dtype: str) -> TakeSteps:
        from sklearn.neural_network import BernoulliRBM

        x = on.astype(dtype)
        model = BernoulliRBM(n_components=256, batch_size=100, n_iter=1, learning_rate=0.05)
        return lambda steps: model.fit(x[: steps * 100])

    others = {
        "rbm_loop": Baseline(
            PLAIN_LOOP, make_step_repeater(loops.make_rbm_step(data, 100, hidden=256))
        ),
        "rbm_sklearn": Baseline(
            "scikit-learn's BernoulliRBM, float64 (its default)", sklearn_rbm("float64"), bar=0.8
        ),
        "rbm_sklearn_float32": Baseline(
            "scikit-learn's BernoulliRBM, float32", sklearn_rbm("float32")
        ),
    }
    what = "RBM 784–256 on MNIST, PCD-1, batch 100"
    return compare_training(settings, what, ours, others, steps=2 * 600, block=100)


def make_adam_steps(
    model: nn.Module, loss: Callable[[], Tensor], *, lr: float, grad_clip: float = 0.0
) -> TakeSteps:
    """Return steps of PyTorch's default Adam, as in the examples of these packages."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        if grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()

    return make_step_repeater(step)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def unets(settings: BenchmarkSettings) -> dict[str, Row]:
    data = training_data(unet_options(settings))
    others = {
        "unet_denoising_diffusion_pytorch": start_package_baseline(
            "denoising_diffusion_pytorch", lucidrains_unet, data
        ),
        "unet_diffusers": start_package_baseline("diffusers", diffusers_unet, data),
    }
    what = "DDPM's U-Net 28×28, widths 16–32–32, batch 64, with EMA, logging and checkpoints"
    return compare_training(settings, what, unet_options(settings), others, steps=60, block=2)


def make_batch_sampler(data: Tensor, n: int) -> Callable[[], Tensor]:
    """Return a function that returns the next n items; bytes are scaled to [−1, 1]."""
    order = loops.iterate_batch_indices(len(data), n, torch.device("cpu"))
    if data.dtype == torch.uint8:
        return lambda: data[next(order)].float().div_(127.5).sub_(1)
    return lambda: data[next(order)]


def lucidrains_unet(data: Tensor) -> Baseline:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    images = make_batch_sampler(data, 64)
    net = Unet(dim=16, dim_mults=(1, 2, 2), channels=1)
    model = GaussianDiffusion(
        net, image_size=28, timesteps=1000, objective="pred_noise", auto_normalize=False
    )
    turn = make_adam_steps(model, lambda: model(images()), lr=2e-3, grad_clip=1.0)
    return Baseline(
        "denoising-diffusion-pytorch, widths 16–32–32", turn, parameters=count_parameters(net)
    )


def diffusers_unet(data: Tensor) -> Baseline:
    from diffusers import DDPMScheduler, UNet2DModel

    images = make_batch_sampler(data, 64)
    down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    net = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=4,
        attention_head_dim=None,
        down_block_types=down,
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")

    def loss() -> Tensor:
        x, t = images(), torch.randint(1000, (64,))
        eps = torch.randn_like(x)
        return F.mse_loss(net(schedule.add_noise(x, eps, t), t).sample, eps)

    turn = make_adam_steps(net, loss, lr=2e-3, grad_clip=1.0)
    return Baseline(
        "diffusers' UNet2DModel, widths 16–32–32",
        turn,
        bar=0.9,
        parameters=count_parameters(net),
    )


def flows(settings: BenchmarkSettings) -> dict[str, Row]:
    ours = ("model=realnvp_points", "dataset=ring", "trainer.preview_every=0")
    data = training_data(ours)
    others = {
        "realnvp_normflows": start_package_baseline("normflows", normflows_coupling, data),
        "realnvp_zuko": start_package_baseline("zuko", zuko_coupling, data),
    }
    what = "RealNVP on points, 16 couplings 64–64, batch 256, with logging and checkpoints"
    return compare_training(settings, what, ours, others, steps=1000, block=50)


def normflows_coupling(data: Tensor) -> Baseline:
    import normflows as nf

    chain, points = [], make_batch_sampler(data, 256)
    for _ in range(16):
        net = nf.nets.MLP([1, 64, 64, 2], init_zeros=True)
        chain += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(2, mode="swap")]
    model = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(2), chain)
    turn = make_adam_steps(model, lambda: model.forward_kld(points()), lr=2e-3)
    return Baseline("normflows, 16 couplings 64–64", turn, parameters=count_parameters(model))


def zuko_coupling(data: Tensor) -> Baseline:
    from zuko.flows import RealNVP

    points, model = (
        make_batch_sampler(data, 256),
        RealNVP(2, transforms=16, hidden_features=(64, 64)),
    )
    turn = make_adam_steps(model, lambda: -model().log_prob(points()).mean(), lr=2e-3)
    return Baseline("zuko, 16 couplings 64–64", turn, parameters=count_parameters(model))


def splines(settings: BenchmarkSettings) -> dict[str, Row]:
    data = training_data(("model=nsf", "dataset=ring"))
    rows = {}
    for name, options, network in (
        ("nsf_zuko", ("model.hidden=[64,64]", "model.num_bins=16"), "the same network"),
        ("nsf_recipe_zuko", (), "the recipe's wider network"),
    ):
        ours = ("model=nsf", *options, "dataset=ring", "trainer.preview_every=0")
        what = f"spline flow on points, {network}, batch 512, with logging and checkpoints"
        rows |= compare_training(
            settings,
            what,
            ours,
            {name: start_package_baseline("zuko", zuko_spline, data)},
            steps=600,
            block=20,
        )
    return rows


def zuko_spline(data: Tensor) -> Baseline:
    from zuko.flows import NSF

    points, model = (
        make_batch_sampler(data, 512),
        NSF(2, transforms=3, bins=16, hidden_features=(64, 64)),
    )
    turn = make_adam_steps(model, lambda: -model().log_prob(points()).mean(), lr=1e-3)
    return Baseline(
        "zuko, 3 layers 64–64 of 16 bins", turn, bar=1.0, parameters=count_parameters(model)
    )


# --- sampling -------------------------------------------------------------------------------------


def sampling(settings: BenchmarkSettings) -> dict[str, Row]:
    rows = {}
    vae = build_training_objects(*vae_options(settings), "device=cpu", "out=unused")[2].model.eval()
    by_hand = loops.PlainVAE()

    def draw_vae(_: int) -> None:
        with torch.no_grad():
            by_hand.decode(torch.randn(1000, 20)).sigmoid()

    rows["sample_vae"] = compare_calls(
        settings,
        "VAE 784–400–20, 1,000 items at a time",
        lambda: vae.sample(1000),
        Baseline(PLAIN_LOOP, draw_vae),
        rounds=200,
        items=1000,
    )
    options = ("model=dcgan", "model.width=32", "dataset.size=32", "trainer.batch_size=64")
    gan = build_training_objects(*options, "device=cpu", "out=unused")[2].model.eval()

    def draw_gan(_: int) -> None:
        with torch.no_grad():
            gan.generator(torch.rand(64, 100) * 2 - 1)

    rows["sample_dcgan"] = compare_calls(
        settings,
        "DCGAN 32×32, 32 maps, 64 items at a time",
        lambda: gan.sample(64),
        Baseline(PLAIN_LOOP, draw_gan),
        rounds=100,
        items=64,
    )
    model = build_training_objects(*unet_options(settings), "device=cpu", "out=unused")[
        2
    ].model.eval()
    n, steps = (16, 50) if settings.step_fraction == 1 else (2, 3)

    def draw_unet(_: int) -> None:
        loops.ddim_sample(model.network, model.schedule.alphas_bar, (n, 1, 28, 28), steps)

    rows["sample_ddim"] = compare_calls(
        settings,
        f"DDPM's U-Net 28×28, DDIM with {steps} steps, {n} items at a time",
        lambda: model.sample(n, sampler="ddim", steps=steps),
        Baseline(PLAIN_LOOP, draw_unet),
        rounds=6,
        items=n,
    )
    return rows


def cached_sampling(settings: BenchmarkSettings) -> dict[str, Row]:
    """Compare autoregressive sampling with and without a key–value cache."""
    side, length = (28, 1024) if settings.step_fraction == 1 else (4, 16)
    text = (
        "model=gpt_text",
        "model.num_layers=4",
        "model.num_heads=4",
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
        model = build_training_objects(*options, "device=cpu", "out=unused")[2].model.eval()

        def draw(*, cache: bool, model: nn.Module = model) -> Tensor:
            torch.manual_seed(0)
            return model.sample(4, cache=cache)

        plain = Baseline(
            "no cache: the whole prefix for each token",
            lambda _: draw(cache=False),
            bar=1 / 8,
        )
        same = torch.equal(draw(cache=True), draw(cache=False))
        what = f"sampling with the key–value cache, {what}, 4 at a time"
        if not same:
            what += ": SAMPLES DIFFER"
        rows[f"sample_{options[0].partition('=')[2]}"] = compare_calls(
            settings, what, lambda: draw(cache=True), plain, rounds=4, items=4
        )
    return rows


CASES: dict[str, Callable[[BenchmarkSettings], dict[str, Row]]] = {
    case.__name__: case
    for case in (
        vae_loop,
        dcgan_loop,
        unet_loop,
        vae_loaders,
        vae_pythae,
        rbm,
        unets,
        flows,
        splines,
        sampling,
        cached_sampling,
    )
}
