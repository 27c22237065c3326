"""The commands, a file each, and what `genlab --help` says of them."""

COMMANDS = {  # what Hydra composes: configs/<command>.yaml, then genlab.build.<command>
    "train": "train a model: genlab train model=dcgan dataset=mnist; go on with resume=latest",
    "plan": "what a training would take, with nothing trained: genlab plan model=ddpm dataset=cifar10",
    "sample": "draw from a run's model: genlab sample run=<folder> n=64 y=3 seed=0",
    "evaluate": "measure a run on held-out data: genlab evaluate run=<folder>",
    "compare": "runs side by side, as a table and a page to look at: genlab compare runs=[a,b,c]",
    "tasks": "what can be asked of a run: genlab tasks run=<folder>",
}
LISTS = {  # what needs no run: genlab.tasks.listing
    "models": "the recipes, and what each can do: exact, bound or estimate",
    "datasets": "the data sets",
    "completion": 'shell completion: eval "$(genlab completion bash)" (or zsh)',
}
