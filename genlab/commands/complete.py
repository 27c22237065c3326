"""genlab complete: continue a text from a prompt."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Interval

from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.requirements import require_ability
from genlab.inference.results import output_folder_of_run, run_record_fields
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, NonNegative, Positive
from genlab.viz import item_pictures


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
    request = CommandRequest.from_command_call(complete, [run], locals())
    require_ability(run, "extend")
    if run.spec.kind != "tokens":
        raise UserError(f"{run.name} on {run.dataset_name} extends {run.spec.kind}, not text")
    prompt = str(prompt)  # the command line reads 1605 as a number
    tokens = torch.tensor(
        [run.spec.to_tokens(prompt)] * draws, dtype=torch.long, device=run.device.torch
    )  # (draws, T)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    torch.manual_seed(seed)
    texts = item_pictures.decode_tokens_to_texts(run.model.extend(tokens, n, **options), run.spec)

    print(item_pictures.join_texts_by_dashes(texts))
    text = item_pictures.join_texts_by_dashes(texts).encode("utf-8", "replace")
    record = run_record_fields(run, seed) | {"prompt": prompt, "n": n, **options, "texts": texts}
    files: dict[str, Writer] = {".txt": lambda path: atomic_write(path, text)}
    write_and_print_output_files(
        request, output_folder_of_run(run, output_dir), "complete", record, files
    )
    return texts
