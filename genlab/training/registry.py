"""Trainers by their name in `trainer.name`, as paths: only the one in use is imported."""

TRAINERS = {
    # gradient descent on model.loss
    "autoencoder": "genlab.training.trainer.Trainer",
    "autoregressive": "genlab.training.trainer.Trainer",
    "diffusion": "genlab.training.trainer.Trainer",
    "forecasting": "genlab.training.trainer.Trainer",
    # … with a warm-up of the KL term
    "vae": "genlab.models.vae.trainer.VAETrainer",
    # … after a data-dependent initialization
    "flow": "genlab.models.flow.trainer.FlowTrainer",
    # … on latent codes that are computed once
    "latent": "genlab.models.diffusion.latent_trainer.LatentTrainer",
    # … after the columns of a table were fitted
    "tabular": "genlab.models.tabular.trainer.TableTrainer",
    # … on pairs that a teacher generates once
    "reflow": "genlab.models.diffusion.reflow_trainer.ReflowTrainer",
    # … on few labeled and many unlabeled items
    "m2": "genlab.models.vae.m2_trainer.SemiSupervisedTrainer",
    # … with a codebook of running means
    "vq_vae": "genlab.models.vae.vq_vae_trainer.VQVAETrainer",
    # … with resampling of items that are rare in latent space
    "debias_vae": "genlab.models.vae.debias_trainer.DebiasTrainer",
    # alternating updates of discriminator and generator
    "gan": "genlab.models.gan.trainer.GANTrainer",
    # … on images of growing resolution
    "progressive": "genlab.models.gan.progressive_trainer.ProgressiveTrainer",
    # … for image-to-image translation
    "translation": "genlab.models.gan.translation_trainer.TranslationTrainer",
    # contrastive divergence
    "rbm": "genlab.models.boltzmann.trainer.CDTrainer",
    # … of one layer after another
    "greedy": "genlab.models.boltzmann.trainer.GreedyTrainer",
    # closed forms and EM, without an optimizer
    "classical": "genlab.models.classical.trainer.ClassicalTrainer",
}
