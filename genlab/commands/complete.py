"""genlab complete: text that goes on from a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval

from genlab.abilities import need
from genlab.config.recipes import able
from genlab.errors import UserError
from genlab.runs.loaded_run import Run
from genlab.runs.run_folder import write_whole
from genlab.spec import Count, NonNegative, Positive
from genlab.viz import image_grids


def complete(
    run: Run,
    *,
    prompt: str | int | float = "",
    n: Positive = 500,
    draws: Positive = 1,
    temperature: NonNegative = 1.0,
    top_k: Positive | None = None,
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None,
    seed: Count = 0,
    out: str | None = None,
) -> list[str]:
    """Go on from a prompt with n more tokens, several draws side by side; print, write and return the texts.

    Raises:
        UserError: the model does not extend sequences, or the prompt has a character that its data does not have.
    """
    need(run.model, "extend", lambda: able("extend"))
    if run.spec.kind != "tokens":
        raise UserError(f"{run.name} on {run.info['dataset']} extends {run.spec.kind}, not text")
    prompt = str(prompt)  # the command line takes 1605 for a number
    tokens = torch.tensor(
        [run.spec.to_tokens(prompt)] * draws, dtype=torch.long, device=run.device.torch
    )  # (draws, T)
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    torch.manual_seed(seed)
    texts = image_grids.texts(run.model.extend(tokens, n, **how), run.spec)

    folder = Path(out) if out else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"complete_step{run.step}_seed{seed}.txt"
    record = {"prompt": prompt, "n": n, **how, "seed": seed, "step": run.step, "texts": texts}
    write_whole(path, image_grids.listed(texts).encode())
    write_whole(
        path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False).encode()
    )
    print(image_grids.listed(texts))
    print(path)
    return texts
