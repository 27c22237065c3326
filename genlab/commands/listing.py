"""The commands that need no run: genlab models, datasets, completion."""

from __future__ import annotations

from genlab.commands import COMMANDS, LISTS
from genlab.errors import UserError, did_you_mean

BASH = """\
_genlab() {
    local word="${COMP_WORDS[COMP_CWORD]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W "%(commands)s" -- "$word") )
        return
    fi
    if [ "${COMP_WORDS[1]}" = sweep ]; then
        case "$COMP_CWORD" in
            2) COMPREPLY=( $(compgen -W "%(verbs)s" -- "$word") ) ;;
            *) compopt -o filenames 2>/dev/null; COMPREPLY=( $(compgen -d -- "$word") ) ;;
        esac
        return
    fi
    case " %(composed)s " in *" ${COMP_WORDS[1]} "*) ;; *) return ;; esac
    local typed="${COMP_LINE#*${COMP_WORDS[1]}}"
    local last="${typed##* }"
    local found="$(COMP_LINE="genlab$typed" genlab "${COMP_WORDS[1]}" -sc query=bash 2>/dev/null)"
    local cut=""
    case "$COMP_WORDBREAKS" in *=*) case "$last" in *=*) cut="${last%%=*}=" ;; esac ;; esac
    compopt -o nospace 2>/dev/null
    COMPREPLY=()
    local one
    for one in $found; do
        case "$one" in "$last"*) COMPREPLY+=( "${one#"$cut"}" ) ;; esac
    done
}
complete -o nospace -F _genlab genlab
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def models(arguments: list[str]) -> None:
    """Print the recipes and the ability matrix."""
    from genlab.abilities import ABILITIES
    from genlab.config import recipes
    from genlab.console import show

    none_expected("models", arguments)
    show(["model", "recipe"], [[r.name, r.header] for r in recipes.recipes()])
    show(["model", *ABILITIES], recipes.matrix())
    print("exact, bound, estimate: how a likelihood is had; yes: it can; empty: none")


def datasets(arguments: list[str]) -> None:
    """Print the data sets."""
    from genlab.config import recipes
    from genlab.console import show

    none_expected("datasets", arguments)
    show(["dataset", "what it is"], [[p.stem, recipes.header(p)] for p in recipes.group("dataset")])


def completion(arguments: list[str]) -> None:
    """Print the shell's completion function."""
    from genlab.commands.sweep import VERBS

    if arguments not in (["bash"], ["zsh"]):
        word = arguments[0] if arguments else ""
        raise UserError(
            f"completion: which shell? bash or zsh{did_you_mean(word, ['bash', 'zsh'])}"
        )
    words = {"commands": [*COMMANDS, *LISTS], "composed": COMMANDS, "verbs": VERBS}
    script = BASH % {name: " ".join(each) for name, each in words.items()}
    print((ZSH if arguments == ["zsh"] else "") + script, end="")


def none_expected(command: str, arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"genlab {command} takes no options, not {' '.join(arguments)}")
