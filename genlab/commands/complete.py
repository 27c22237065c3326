"""genlab complete: continue a text from a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval

from genlab.abilities import require
from genlab.config.recipes import models_with
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, NonNegative, Positive
from genlab.viz import image_grids


def complete(
    run: LoadedRun,
    *,
    prompt: str | int | float = "",
    n: Positive = 500,
    draws: Positive = 1,
    temperature: NonNegative = 1.0,
    top_k: Positive | None = None,
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None,
    seed: Count = 0,
    output_dir: str | None = None,
) -> list[str]:
    """Continue a prompt with n more tokens, several times; print, write and return the texts.

    Args:
        temperature: below 1, probable tokens become more probable; 0 always takes the most
            probable.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities sum to p.

    Raises:
        UserError: the model does not extend sequences, or the prompt has a character that its data
            does not have.
    """
    require(run.model, "extend", lambda: models_with("extend"))
    if run.spec.kind != "tokens":
        raise UserError(f"{run.name} on {run.dataset_name} extends {run.spec.kind}, not text")
    prompt = str(prompt)  # the command line reads 1605 as a number
    tokens = torch.tensor(
        [run.spec.to_tokens(prompt)] * draws, dtype=torch.long, device=run.device.torch
    )  # (draws, T)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    torch.manual_seed(seed)
    texts = image_grids.decode_texts(run.model.extend(tokens, n, **options), run.spec)

    folder = Path(output_dir) if output_dir else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"complete_step{run.step}_seed{seed}.txt"
    record = {"prompt": prompt, "n": n, **options, "seed": seed, "step": run.step, "texts": texts}
    atomic_write(path, image_grids.join_texts(texts).encode())
    atomic_write(
        path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False).encode()
    )
    print(image_grids.join_texts(texts))
    print(path)
    return texts
