"""genlab models: list the recipes and their abilities, as wide as the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.errors import UserError
from genlab.tables import print_table, terminal_width

if TYPE_CHECKING:
    from genlab.config.recipes import Recipe
    from genlab.viz.model_tree import Branch

PIPE_WIDTH = 80  # columns if the output is not a terminal
DEFAULT_TREE_FILE = "outputs/models/taxonomy.png"
TREE_SUFFIXES = (".png", ".svg")
TREE_DPI = 110
# kind of density -> its name in the tree, and a note
DENSITY_KINDS = {
    "tractable": ("tractable", "log p(x) in one pass"),
    "variational": ("variational", "log p(x) ≥ a bound"),
    "markov chain": ("Markov chain", "an energy and log Z"),
    "implicit": ("implicit density", "samples only"),
    "conditional": ("conditional outputs", "an output for each input"),
    "codes": ("codes", "an encoder, no samples"),
}
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
    "token_log_probs": "V",
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
    "forecast": "A",
}


def models(arguments: list[str]) -> None:
    """Print the recipes with their papers, then the abilities of each; or draw their taxonomy.

    Args:
        arguments: none, or tree=<file.png or .svg>; tree=true chooses the file.

    Raises:
        UserError: another argument, or a file of another type.
    """
    from genlab.config.recipes import list_recipes

    others = [word for word in arguments if not word.startswith("tree=")]
    if others or len(arguments) > 1:
        raise UserError(
            f"genlab models does not take options such as {' '.join(others or arguments)}; "
            "it takes tree=<file.png>, which draws the recipes by how they represent a density"
        )
    if arguments:
        write_taxonomy(arguments[0].removeprefix("tree="))
        return
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


# --- the taxonomy ---------------------------------------------------------------------------------


def write_taxonomy(target: str) -> None:
    """Draw the recipes as a tree of kinds of densities, and print where it is.

    Args:
        target: the file, PNG or SVG; "true" is the default one.

    Raises:
        UserError: the file has another suffix, or exists and is not an earlier tree.
    """
    from genlab.config.recipes import list_recipes
    from genlab.inference.output_files import (
        CommandRequest,
        file_checksum,
        find_first_taken_file,
        write_record_file,
    )
    from genlab.viz.model_tree import draw_tree

    path = Path(DEFAULT_TREE_FILE if target.lower() == "true" else target).expanduser()
    if path.suffix not in TREE_SUFFIXES:
        raise UserError(f"tree={target}: give a file that ends in {' or '.join(TREE_SUFFIXES)}")
    request = CommandRequest("models", (), {"tree": path.suffix}, ()).to_json(path.parent)
    record = path.with_suffix(".json")
    if taken := find_first_taken_file(path.parent, [path.name], record.name, request):
        raise UserError(
            f"tree={target}: {path.parent / taken} exists and is a file of yours, which is not "
            "overwritten; give another name"
        )
    tree = taxonomy_of_recipes(list_recipes())
    places = {name: list(kinds) for kinds, name in list_leaves(tree)}
    print_table(
        ["kind", "models"],
        [[" › ".join(place), ", ".join(names)] for place, names in names_by_place(places)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_tree(tree, "Generative models by how they represent p(x)").savefig(path, dpi=TREE_DPI)
    write_record_file(record, {"models": places}, request, {path.name: file_checksum(path)})
    print(f"{record}\nopen: {path}")


def taxonomy_of_recipes(listed: list[Recipe]) -> Branch:
    """Return the recipes as a tree, by the abilities of their models.

    Goodfellow 2016, https://arxiv.org/abs/1701.00160, figure 9: explicit densities that are
    tractable or approximate, by a variational bound or a Markov chain, and implicit ones. The last
    branches are for models that do not draw items of p(x) by themselves.
    """
    from genlab.viz.model_tree import Branch

    leaves: dict[str, dict[str, list[str]]] = {kind: {} for kind in DENSITY_KINDS}
    for recipe in listed:
        families = leaves[density_kind(recipe.abilities())]
        families.setdefault(recipe.target.split(".")[2], []).append(recipe.name)

    def branch(kind: str) -> Branch:
        return Branch(*DENSITY_KINDS[kind], families=dict(sorted(leaves[kind].items())))

    approximate = Branch(
        "approximate", "a bound or an estimate", [branch("variational"), branch("markov chain")]
    )
    explicit = Branch("explicit density", "", [branch("tractable"), approximate])
    rest = [branch(kind) for kind in ("conditional", "codes") if leaves[kind]]
    return Branch("models", "", [explicit, branch("implicit"), *rest])


def density_kind(available: set[str]) -> str:
    """Return the kind of density of a model with these abilities, a key of DENSITY_KINDS."""
    if available & {"energy", "log_partition"}:
        return "markov chain"
    if "log_prob" in available:
        return "tractable"
    if available & {"elbo", "iwae", "ode_log_prob"}:
        return "variational"
    if "sample" in available:
        return "implicit"
    return "conditional" if available & {"translate", "forecast"} else "codes"


def list_leaves(
    branch: Branch, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the models of a tree with the names of the branches above each and its family."""
    for child in branch.branches:
        yield from list_leaves(child, (*above, child.name))
    for family, models in branch.families.items():
        yield from (((*above, family), model) for model in models)


def names_by_place(places: dict[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """Return each place with all that is there."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, place in places.items():
        found.setdefault(tuple(place), []).append(name)
    return [(list(place), names) for place, names in found.items()]


# --- texts ----------------------------------------------------------------------------------------


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
