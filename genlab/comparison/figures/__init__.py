"""Figures of a comparison: each kind is one file, which the YAML names and sets.

figures:
  latent: {kind: panels, show: [codes, samples], numbers: [frechet]}
"""
