"""genlab trains, samples, measures and compares every family of deep generative model."""

__version__ = "0.5.0"
