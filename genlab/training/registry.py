"""The update rules by name. The names of classes, so that only the one in use is imported."""

TRAINERS = {
    "autoencoder": "genlab.training.trainer.Trainer",  # one descent on a reconstruction's error …
    "vae": "genlab.training.trainer.Trainer",  # … on a bound …
    "flow": "genlab.training.trainer.Trainer",  # … on a likelihood …
    "diffusion": "genlab.training.trainer.Trainer",  # … on a denoising error
    "gan": "genlab.models.gan.trainer.GANTrainer",  # the game of two players
    "rbm": "genlab.models.boltzmann.trainer.CDTrainer",  # contrastive divergence
}
