"""genlab completion: print the completion function of a shell."""

from __future__ import annotations

from genlab.commands import COMMANDS
from genlab.errors import UserError, did_you_mean

SHELLS = ("bash", "zsh")
BASH_FUNCTION = """\
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
# zsh runs the bash function through its compatibility layer.
ZSH_SETUP = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(arguments: list[str]) -> None:
    """Print the completion function of the shell named in the arguments.

    Raises:
        UserError: there is not exactly one argument, bash or zsh.
    """
    from genlab.commands.sweep import VERBS

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        hint = did_you_mean(arguments[0] if arguments else "", list(SHELLS))
        raise UserError(f"completion: which shell? bash or zsh{hint}")
    words = {
        "commands": COMMANDS,
        "composed": [name for name, command in COMMANDS.items() if command.composed],
        "verbs": VERBS,
    }
    script = BASH_FUNCTION % {name: " ".join(each) for name, each in words.items()}
    print((ZSH_SETUP if arguments == ["zsh"] else "") + script, end="")
