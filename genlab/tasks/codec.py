"""The autoencoder that a model works in the codes of: a run's, by its folder, or one that is trained first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.arguments import refuse_targets
from genlab.errors import UserError
from genlab.spec import Spec
from genlab.tasks import lecture
from genlab.training.ranks import Ranks
from genlab.training.run import RunFolder

CODECS = Path("outputs/codecs")
SHARED = ("dataset", "prepare", "device", "seed")  # overrides that a codec's own training takes over


def with_codec(config: dict[str, Any], spec: Spec, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the config with the codec's architecture in `model.codec`, and the codec's weights, if the config asks for one.

    `codec.run` names a run. Without it `codec.train`, overrides of `genlab train`, trains one, or finds it trained already. A run
    that goes on has its codec's architecture in its own config, and the weights in its checkpoints.

    Args:
        overrides: of this command; those of the data go to the codec's training too.

    Raises:
        UserError: the codec was trained on data of another form, or could not be trained.
    """
    asked = config.get("codec")
    if not asked or "codec" in config["model"]:
        return config, None
    where = asked["run"]
    if where is None:
        shared = [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in SHARED]
        if (ranks := Ranks()).first:
            columns, _ = lecture.prepare(train={"codec": [*asked["train"], *shared]}, folder=CODECS)
            where = columns[0].run
        where = ranks.share(where)
    folder, checkpoint = RunFolder.find(where)
    own = folder.options("model")
    refuse_targets(own, allowed=tuple(config.get("allow") or ()), where=str(folder.path / "config.yaml"))
    theirs = folder.spec()
    if (theirs.shape, theirs.range, theirs.kind) != (spec.shape, spec.range, spec.kind):
        raise UserError(f"{folder.path} encodes {theirs.kind} of shape {theirs.shape} in {list(theirs.range)}, and this data is "
                        f"{spec.kind} of shape {spec.shape} in {list(spec.range)}; set prepare= as it was there")  # fmt: skip
    state = folder.load(checkpoint)
    model = {**config["model"], "codec": {**own["model"], "_partial_": True}}
    return {**config, "model": model, "codec": {**asked, "run": str(folder.path)}}, state["ema"] or state["model"]
