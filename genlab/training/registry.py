"""The update rules by name. The names of classes, so that only the one in use is imported."""

TRAINERS = {
    "autoencoder": "genlab.training.trainer.Trainer",  # one descent on a reconstruction's error …
    "vae": "genlab.models.vae.trainer.VAETrainer",  # … on a bound, whose KL term may be warmed up …
    "flow": "genlab.models.flow.trainer.FlowTrainer",  # … on a likelihood …
    "autoregressive": "genlab.training.trainer.Trainer",
    "diffusion": "genlab.training.trainer.Trainer",  # … on a denoising error
    "latent": "genlab.models.diffusion.latent_trainer.LatentTrainer",  # … of codes that were made once
    "reflow": "genlab.models.diffusion.reflow_trainer.ReflowTrainer",  # … of pairs that another model made once
    "gan": "genlab.models.gan.trainer.GANTrainer",  # the game of two players
    "progressive": "genlab.models.gan.progressive_trainer.ProgressiveTrainer",  # … whose images grow
    "translation": "genlab.models.gan.translation_trainer.TranslationTrainer",  # … between a source and its target
    "classical": "genlab.models.classical.trainer.ClassicalTrainer",  # closed forms and EM: no optimizer
    "rbm": "genlab.models.boltzmann.trainer.CDTrainer",  # contrastive divergence
    "greedy": "genlab.models.boltzmann.trainer.GreedyTrainer",  # … of one machine of a deep model after another
    "m2": "genlab.models.vae.m2_trainer.SemiSupervisedTrainer",  # a bound, with few labels
    "vq_vae": "genlab.models.vae.vq_vae_trainer.CodebookTrainer",  # one descent, and a codebook of running means
    "debias_vae": "genlab.models.vae.debias_trainer.DebiasTrainer",  # a bound, on items that the model chooses
}
