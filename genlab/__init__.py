"""genlab trains, samples, evaluates and compares every family of deep generative models."""

__version__ = "0.8.0"
