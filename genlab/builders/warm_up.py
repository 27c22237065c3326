"""Importing this module composes a config, so that forked processes compose faster.

Parsers of Hydra and OmegaConf, and the checks of options, are built at their first use.
"""

from __future__ import annotations

import gc

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from genlab.builders.resume_config import check_run_options


def compose_once() -> None:
    """Compose the defaults of `genlab train`, and check them."""
    with initialize_config_module("genlab.configs", version_base="1.3"):
        config = compose("train", ["seed=1", "trainer.steps=10", "out=unused"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    check_run_options({str(key): value for key, value in plain.items()})


compose_once()
# A collection in a forked process would visit, and so copy, all objects that were imported.
gc.collect()
gc.freeze()
