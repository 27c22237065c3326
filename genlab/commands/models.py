"""genlab models: list the recipes and their abilities, as wide as the terminal."""

from __future__ import annotations

import re
import textwrap

from genlab.errors import UserError
from genlab.tables import terminal_width

PIPE_WIDTH = 80  # columns if the output is not a terminal
# The column of each ability in the table; a missing ability is shown as a dot.
ABILITY_LETTERS = {
    "sample": "S",
    "encode": "E",
    "decode": "D",
    "prior": "P",
    "styles": "W",
    "synthesize": "Y",
    "posterior": "Q",
    "log_prob": "L",
    "ode_log_prob": "O",
    "elbo": "B",
    "eps_mse": "N",
    "iwae": "I",
    "energy": "U",
    "log_partition": "Z",
    "inpaint": "F",
    "extend": "X",
    "denoise": "C",
    "classify": "K",
    "restore": "R",
    "edit": "M",
    "translate": "T",
}


def models(arguments: list[str]) -> None:
    """Print the recipes with their papers, then the abilities of each."""
    from genlab.config.recipes import list_recipes

    if arguments:
        raise UserError(f"genlab models does not take options such as {' '.join(arguments)}")
    listed = list_recipes()
    name_width = max(len(recipe.name) for recipe in listed)
    width = terminal_width(PIPE_WIDTH) - 1
    print(f"{'model':<{name_width}}  paper")
    for recipe in listed:
        title = textwrap.shorten(
            recipe_citation(recipe.header), width - name_width - 2, placeholder=" …"
        )
        print(f"{recipe.name:<{name_width}}  {title}")
    print(f"\n{format_abilities_legend(width)}\n\n{'model':<{name_width}}  likelihood  abilities")
    for recipe in listed:
        available = recipe.abilities()
        letters = " ".join(
            letter if verb in available else "." for verb, letter in ABILITY_LETTERS.items()
        )
        print(f"{recipe.name:<{name_width}}  {best_likelihood_tag(available):<10}  {letters}")


def recipe_citation(header: str) -> str:
    """Return the first sentence of a recipe's comment without the address of the paper."""
    text = re.sub(r",? ?\bhttps?://[^\s;)]*[^\s;).,:]", "", header)
    sentence = re.split(r"(?<!\bal)(?<!\bet)\.\s|(?<=\d\d\d\d):\s", text, maxsplit=1)[0]
    return sentence.rstrip(".")


def best_likelihood_tag(available: set[str]) -> str:
    """Return the most accurate likelihood that abilities give: exact, bound or estimate."""
    from genlab.config.recipes import LIKELIHOOD_TAGS

    tags = {LIKELIHOOD_TAGS[verb] for verb in available if verb in LIKELIHOOD_TAGS}
    if "log_partition" in available:  # a bound that needs an estimate is an estimate
        tags.discard("bound")
    return next((tag for tag in ("exact", "bound", "estimate") if tag in tags), "")


def format_abilities_legend(width: int) -> str:
    """Return the meaning of the letters of the table, wrapped."""
    # Non-breaking spaces keep a letter and its ability on one line.
    letters = ", ".join(
        f"{letter}\N{NO-BREAK SPACE}{verb}" for verb, letter in ABILITY_LETTERS.items()
    )
    text = (
        f"Abilities: {letters}. Likelihood: exact, a bound of it, or an estimate. "
        "`genlab info run=<folder>` lists the commands that fit a run."
    )
    return textwrap.fill(text, width).replace("\N{NO-BREAK SPACE}", " ")
