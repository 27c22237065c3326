"""The commands, a file each, and what `genlab --help` says of them."""

COMMANDS = {  # what Hydra composes: configs/<command>.yaml, then genlab.builders.entrypoints.<command>
    "train": "train a model: genlab train model=dcgan dataset=mnist; go on with resume=latest",
    "plan": "what a training would take, with nothing trained: genlab plan model=ddpm dataset=cifar10",
    "sample": "draw from a run's model: genlab sample run=<folder> n=64 y=3 seed=0",
    "complete": "text from a prompt: genlab complete run=<folder> prompt=ROMEO temperature=0.8",
    "reconstruct": "held-out items and what comes back from their codes: genlab reconstruct run=<folder>",
    "encode": "codes as .npz and as a picture: genlab encode run=<folder> split=train",
    "interpolate": "between two codes: genlab interpolate run=<folder> how=spherical between=prior",
    "traverse": "one dimension of the code at a time: genlab traverse run=<folder> span=3",
    "arithmetic": "a − b + c on codes, or an attribute's direction: genlab arithmetic run=<folder> a=7 b=1 c=0",
    "mix": "coarse styles of one draw, fine of another: genlab mix run=<folder> truncation=0.7",
    "project": "the code of a given item, and edits of it: genlab project run=<folder> images=me.png edit=interpolate",
    "inpaint": "hidden parts filled in: genlab inpaint run=<folder> mask=half side=bottom",
    "denoise": "noise put on and taken off: genlab denoise run=<folder> noise=masking level=0.5",
    "translate": "sources to targets, of held-out pairs or a folder: genlab translate run=<folder> in=photos out=made",
    "colorize": "colour for grey images: genlab colorize run=<folder> in=old out=coloured",
    "superres": "larger images: genlab superres run=<folder> in=small out=large; in=Set5 down=true measures it",
    "forecast": "a film's next n frames, as a GIF: genlab forecast run=<folder> n=20",
    "evaluate": "measure a run on held-out data: genlab evaluate run=<folder>",
    "likelihood": "log p of each item, as numbers and a histogram: genlab likelihood run=<folder> split=test",
    "anomaly": "what a run never saw against what it knows: genlab anomaly run=<folder> dataset=fashion_mnist",
    "classify": "classes by Bayes' rule or the model's own p(y|x): genlab classify run=<folder>",
    "compare": "runs side by side, as a table and a page to look at: genlab compare runs=[a,b,c]",
    "tasks": "what can be asked of a run: genlab tasks run=<folder>",
}
LISTS = {  # what is no config of Hydra's: genlab.commands.listing, genlab.commands.sweep
    "sweep": "a sweep's jobs: genlab sweep status|best|rerun|resume <folder>",
    "models": "the recipes, and what each can do: exact, bound or estimate",
    "datasets": "the data sets",
    "completion": 'shell completion: eval "$(genlab completion bash)" (or zsh)',
}
