"""Several processes train one model, by gloo: the same as one process with the joint batch, and they end together."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import ddp_losses
from helpers.ddp_processes import ended, popen, start
from helpers.kill_harness import TORCHRUN, workers
from helpers.slurm_cluster import LONG, Sweep, answering
from helpers.sweep_model import MINE, brief, write_model
from PIL import Image

from genlab.distributed.process_group import Ranks
from genlab.distributed.shard_buffers import share
from genlab.runs.run_folder import RunFolder

HERE = Path(__file__).parent
FAMILIES = ["vae", "dcgan", "realnvp", "rbm", "ddpm"]
KEEPERS = ["maf", "dbn", "m2", "vq_vae", "debias_vae", "spectral", "stylegan2", "cyclegan", "gpt"]
CUT = ["vae+fsdp", "ddpm+fsdp", "gpt+fsdp"]
SILENT = re.escape("ended without a word (killed, out of memory, or its machine is gone)")


def until_saved(folder: Path, processes: list[subprocess.Popen]) -> None:
    while not RunFolder(folder).steps():
        assert all(p.poll() is None for p in processes), [
            p.communicate()[1] for p in processes if p.poll() is not None
        ]
        time.sleep(0.05)


def check_equal(cwd: Path, processes: list[int], shards: int, steps: int, names: list[str]) -> None:
    alone = ddp_losses.found(shards, steps, names, Ranks())
    for n in processes:
        several = ended(start(n, ddp_losses.__file__, shards, steps, *names, cwd=cwd), within=900)
        assert not any(code for code, _, _ in several), several
        together = json.loads(several[0][1].splitlines()[-1])
        for name in names:
            for at, (one, found) in enumerate(zip(alone[name], together[name], strict=True)):
                assert found == pytest.approx(one, rel=1e-9, abs=1e-12), (
                    f"{name}, {n} processes, step {at + 1}"
                )


def test_two_processes_equal_one_with_the_joint_batch(tmp_path):
    check_equal(
        tmp_path,
        [2],
        4,
        3,
        ["uneven", "vae", "realnvp", "rbm", "dcgan+early", "gpt+fsdp", "ddpm", "stylegan2"],
    )


@pytest.mark.slow
def test_four_processes_equal_two_and_one(tmp_path):
    early = [f"{name}+early" for name in FAMILIES]
    check_equal(tmp_path, [2, 4], 4, 20, ["uneven", *FAMILIES, *KEEPERS, *early, *CUT])


# --- a run goes on with others ----------------------------------------------------------------------------------------

VAE = (
    "device=cpu",
    "device.precision=fp64",
    "device.threads=1",
    "trainer.save_every=2",
    "trainer.batch_size=24",
)
ENDLESS = ("-m", "genlab", "train", *VAE, "trainer.steps=1000000", "out=run")


def test_one_of_two_is_killed_and_the_run_goes_on_alone(genlab, tmp_path):
    """The same as a run that nothing disturbed: its two shards are kept."""
    processes = start(2, *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", processes)
    processes[1].kill()
    (code, _, said), (killed, _, _) = ended(processes, within=60)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert re.fullmatch(rf"genlab: rank 1 on \S+ {SILENT}", said.splitlines()[-1])
    assert len(list(tmp_path.glob("**/run.json"))) == 1
    step = RunFolder(tmp_path / "run").load()["step"] + 3
    goes_on = genlab("train", "resume=run", f"trainer.steps={step}")
    assert (
        goes_on.code == 0
        and "the run's 2 shards of a batch are seen by 1 process now, 2 by each" in goes_on.err
    )
    assert (
        genlab("train", *VAE, f"trainer.steps={step}", "trainer.accumulate=2", "out=whole").code
        == 0
    )
    a, b = (RunFolder(tmp_path / name).load() for name in ("run", "whole"))
    assert a["step"] == b["step"] == step
    for key, value in b["model"].items():
        torch.testing.assert_close(a["model"][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("began", "now", "accumulate", "says"),
    [
        ((2, 1), 2, 1, ""),
        ((2, 1), 1, 2, "2 shards of a batch are seen by 1 process now, 2 by each"),
        ((2, 2), 4, 1, "4 shards of a batch are seen by 4 processes now, 1 by each"),
        ((2, 1), 4, 1, "cannot share: it goes on with 4 shards of the same batches"),
        ((4, 2), 3, 3, "it goes on with 9 shards"),
    ],
)
def test_the_shards_of_a_batch_are_kept_where_they_can_be(began, now, accumulate, says):
    processes, before = began
    options, said = share({"accumulate": before, "batch_size": 72}, processes=processes, size=now)
    assert (
        options == {"accumulate": accumulate, "batch_size": 72}
        and says in said
        and bool(says) == bool(said)
    )


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(
        ValueError,
        match="batch of 24 cannot be cut evenly for 5 processes; it goes on with 1, 2, 3, 4, 6, 8",
    ):
        share({"accumulate": 1, "batch_size": 24}, processes=2, size=5)


# --- they end together ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_is_killed_ends_all(victim, tmp_path):
    processes = start(3, *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", processes)
    processes[victim].kill()
    for rank, (code, _, said) in enumerate(ended(processes, within=60)):
        if rank != victim:
            assert code == 1 and re.fullmatch(
                rf"genlab: rank {victim} on \S+ {SILENT}", said.splitlines()[-1]
            )
    assert RunFolder(tmp_path / "run").load()["step"] > 0


@pytest.mark.slow
def test_a_signal_to_one_ends_all_with_everything_saved(tmp_path):
    processes = start(3, *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", processes)
    processes[2].send_signal(signal.SIGTERM)
    found = ended(processes, within=60)
    assert [code for code, _, _ in found] == [
        128 + signal.SIGTERM,
        0,
        0,
    ] and "SIGTERM: saved at step" in found[0][2]


@pytest.mark.slow
def test_an_option_that_is_wrong_is_said_once(tmp_path):
    found = ended(start(3, "-m", "genlab", "train", "trainer.stepz=3", cwd=tmp_path), within=900)
    assert [code for code, _, _ in found] == [2, 2, 2]
    assert (
        found[0][2].startswith("genlab: unknown option 'trainer.stepz'")
        and found[0][2].count("\n") == 1
    )
    assert [said for _, _, said in found[1:]] == ["", ""]


@pytest.mark.slow
def test_different_options_are_refused(tmp_path):
    script = tmp_path / "own_seed.py"
    script.write_text(
        "import os, sys; from genlab.cli import main as cli; sys.argv[1:] = ['train', 'seed=' + os.environ['RANK']]; cli.main()"
    )
    (code, _, said), (own, _, why) = ended(start(2, script, cwd=tmp_path), within=900)
    assert (
        (code, own) == (1, 2)
        and "were given different options (seed=0, seed=1)" in said
        and said.startswith("genlab: rank 1")
    )
    assert "different options" in why and not list(tmp_path.glob("outputs"))


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def other_weights(folder: Path) -> None:
    run = RunFolder(folder)
    state = run.load()
    next(iter(state["model"].values())).view(-1)[0] += 1e-6
    run.save(state, keep=9)


BEGIN = (
    "dataset=image_folder",
    "dataset.path=photos",
    "model.hidden=[8]",
    "trainer.preview_every=0",
    "trainer.save_every=2",
)
BEGIN += ("model=vae", "device=cpu", "trainer.batch_size=8", "trainer.steps=4")
GO_ON = ("resume=run", "trainer.steps=6")
DISKS = {  # what another machine's own disk has -> (what is changed there, the command, what is said)
    "an older checkpoint": (lambda disk: RunFolder(disk / "run").steps()[-1].unlink(), GO_ON, "step 2 instead of 4,"),
    "no checkpoint": (lambda disk: [path.unlink() for path in RunFolder(disk / "run").steps()], GO_ON,
                      "step 0 without a checkpoint instead of 4,"),
    "other weights": (lambda disk: other_weights(disk / "run"), GO_ON, r"does: sum of the checkpoint \w+ instead of \w+;"),
    "another recipe": (lambda disk: edit(disk / "run" / "config.yaml", "lr: 0.001", "lr: 0.002"), GO_ON,
                       "does: optimizer.lr 0.002 instead of 0.001;"),
    "fewer items": (lambda disk: (disk / "photos" / "0.png").unlink(), (*BEGIN, "out=new"), "train items .* instead of "),
    "other items": (lambda disk: (disk / "photos" / "0.png").write_bytes((disk / "photos" / "1.png").read_bytes()),
                    (*BEGIN, "out=new"), r"does: sum of the data \w+ instead of \w+;"),
}  # fmt: skip


@pytest.mark.parametrize(
    "disk", [d if n == 0 else pytest.param(d, marks=pytest.mark.slow) for n, d in enumerate(DISKS)]
)
def test_processes_that_would_not_train_the_same_are_refused(disk, genlab, tmp_path):
    """Two machines, each with a disk of its own."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "photos").mkdir(parents=True)
    for i in range(12):
        Image.frombytes("L", (8, 8), bytes(range(i, i + 64))).save(here / "photos" / f"{i}.png")
    assert genlab("train", *BEGIN, "out=run", cwd=here).code == 0
    shutil.copytree(here, there)
    change, what, says = DISKS[disk]
    change(there)
    found = ended(start(2, "-m", "genlab", "train", *what, cwd=[here, there]), within=900)
    assert [code for code, _, _ in found] == [2, 2] and found[1][2] == ""
    said = r"genlab: rank 1 on \S+, which reads image_folder in photos, would not train what rank 0 on \S+ does: .*"
    assert re.match(said, found[0][2].splitlines()[-1]) and re.search(says, found[0][2]), found[0][
        2
    ]
    assert RunFolder(here / "run").load()["step"] == 4 and not list(tmp_path.glob("*/new"))


@pytest.mark.slow
def test_a_sweep_is_refused(tmp_path):
    what = ("-m", "genlab", "train", "-m", "seed=0,1,2", "device=cpu", "trainer.steps=2")
    found = ended(start(2, *what, cwd=tmp_path), within=900)
    assert [code for code, _, _ in found] == [2, 2] and not list(tmp_path.glob("**/run.json"))
    assert "a sweep starts its own processes: give `genlab train -m` to one" in found[0][2]


@pytest.mark.slow
def test_what_one_dies_of_is_said_by_all(tmp_path):
    """The first process alone writes, and the folder of its checkpoints is gone."""
    processes = start(3, *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", processes)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    found = ended(processes, within=60)
    lines = [said.splitlines()[-1] for _, _, said in found]
    assert all(code for code, _, _ in found)
    why = r"run/checkpoints/\S+: No such file or directory; .*go on with `genlab train resume=run`"
    assert all(re.fullmatch(rf"genlab: (rank 0 on \S+: )?{why}", line) for line in lines), lines


@pytest.mark.slow
def test_torchrun_and_a_killed_worker(tmp_path):
    watcher = popen(*TORCHRUN, "--nproc-per-node=3", *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", [watcher])
    os.kill(int(workers(tmp_path)["RANK=1"]), signal.SIGKILL)
    ((code, _, said),) = ended([watcher], within=60)
    assert code == 1 and len(re.findall(rf"genlab: rank 1 on \S+ {SILENT}", said)) == 2, said
    steps = RunFolder(tmp_path / "run").load()["step"] + 2
    goes_on = ("-m", "genlab", "train", "resume=run", f"trainer.steps={steps}")
    ((code, out, _),) = ended(
        [popen(*TORCHRUN, "--nproc-per-node=2", *goes_on, cwd=tmp_path)], within=900
    )
    assert code == 0 and out.count(f"trained {steps} steps") == 1


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A SLURM that answers; test_slurm's own fixture is of every test in a module, and most here need none."""
    yield from answering()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_srun_and_a_killed_task(slurm, tmp_path):
    """On two nodes, by a SLURM that is told not to end the step itself."""
    step = ("srun", "--nodes=2", "--ntasks=3", "--kill-on-bad-exit=0", "--wait=0")
    watcher = popen(*step, sys.executable, *ENDLESS, cwd=tmp_path)
    until_saved(tmp_path / "run", [watcher])
    assert RunFolder(tmp_path / "run").info()["processes"] == 3
    os.kill(workers(tmp_path)["SLURM_PROCID=1"], signal.SIGKILL)
    ((code, _, said),) = ended([watcher], within=60)
    assert code and len(re.findall(rf"genlab: rank 1 on \S+ {SILENT}", said)) == 2, said


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize("ends_the_step", [0, 1])
def test_a_job_of_a_sweep_goes_on_after_one_of_its_processes_was_killed(
    ends_the_step, slurm, tmp_path
):
    """Whether the step is left to end by itself, or SLURM ends it, as it does for a launcher of a whole node."""
    write_model(tmp_path)
    node = (
        "hydra/launcher=slurm_node",
        "hydra.launcher.tasks_per_node=2",
        "hydra.launcher.gpus_per_node=null",
    )
    node += ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
    node += (
        f"hydra.launcher.srun_args=['--kill-on-bad-exit={ends_the_step}']",
        "hydra.launcher.tries=2",
    )
    sweep = Sweep(tmp_path, "train", "-m", *MINE, "seed=0", "trainer.steps=6000", *LONG, *node)
    try:
        sweep.wait(lambda: sweep.begun(0))
        os.kill(workers(tmp_path)["SLURM_PROCID=1"], signal.SIGKILL)
        assert sweep.end() == 0 and brief(sweep.folder) == [("done", 2)], sweep.said()
        assert re.search(
            r"^job 0 .*: (lost|stopped)\b.*; it is started again$", sweep.said(), re.M
        ), sweep.said()
        assert ends_the_step or re.search(rf": lost: rank 1 on \S+ {SILENT};", sweep.said()), (
            sweep.said()
        )
    finally:
        sweep.clear()


# --- a model cut over the processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_of_a_cut_model_is_whole(genlab, tmp_path):
    """Trained with pictures and measures by two processes that hold a half each, it is asked and goes on in one."""
    looks = ("trainer.preview_every=3", "trainer.evaluate_every=2", "evaluate.n=20")
    train = (
        "-m",
        "genlab",
        "train",
        *VAE,
        *looks,
        "trainer.steps=4",
        "trainer.ema=0.9",
        "out=run",
        "device.fsdp=true",
    )
    (code, _, said), _ = ended(start(2, *train, cwd=tmp_path), within=900)
    assert code == 0 and "VAE (95,104 parameters) trains" in said, said
    run = RunFolder(tmp_path / "run")
    assert len(list(run.samples.glob("*.png"))) == 2 and any(
        "evaluation" in line for line in run.history()
    )
    assert genlab("sample", "run=run", "n=4").code == 0
    goes_on = ended(
        start(2, "-m", "genlab", "train", "resume=run", "trainer.steps=6", cwd=tmp_path), within=900
    )
    assert goes_on[0][0] == 0
    cut = run.load()
    for path in run.steps()[-1:]:
        path.unlink()
    assert genlab("train", "resume=run", "trainer.steps=6", "device.fsdp=false").code == 0
    whole = run.load()
    assert list(cut) == list(whole) and cut["step"] == whole["step"] == 6
    for part in ("model", "ema"):
        for key, value in whole[part].items():
            torch.testing.assert_close(cut[part][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("model=dcgan",), "GANTrainer needs the whole model"),
        (("model=made",), "MADE uses weights of parts that it does not call"),
        (("device.precision=fp16",), "device.precision=bf16"),
        (("trainer.batch_size=auto",), "give a number"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, says, tmp_path):
    what = ("-m", "genlab", "train", "device=cpu", "device.fsdp=true", *options)
    (code, _, said), (other, _, silent) = ended(start(2, *what, cwd=tmp_path), within=900)
    assert (code, other, silent) == (2, 2, "") and says in said.splitlines()[-1]
