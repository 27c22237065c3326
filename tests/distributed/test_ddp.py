"""Several processes train one model, by gloo, like one process with the joint batch.

An error or the death of one process ends all of them.
"""

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
from helpers.ddp_processes import popen, start_ranks, wait_for
from helpers.kill_harness import TORCHRUN, rank_pids
from helpers.recipes import RECIPES
from helpers.slurm_cluster import LONG_RUN, Sweep, running_cluster
from helpers.sweep_model import MINE, status_and_starts, write_model
from PIL import Image

from genlab.distributed.batch_shard_buffers import trainer_options_for_processes
from genlab.distributed.process_group import ProcessGroup
from genlab.runs.run_folder import RunFolder

FAMILIES = ["vae", "dcgan", "realnvp", "rbm", "ddpm"]
STATEFUL = ["maf", "dbn", "m2", "vq_vae", "debias_vae", "spectral", "stylegan2", "cyclegan", "gpt"]
SHARDED = ["vae+fsdp", "ddpm+fsdp", "gpt+fsdp"]
SILENT_DEATH = re.escape(
    "exited without an error message (killed, out of memory, or its machine is gone)"
)


def wait_for_checkpoint(folder: Path, processes: list[subprocess.Popen]) -> None:
    """Wait until a run has saved its first checkpoint."""
    while not RunFolder(folder).checkpoint_files():
        ended = [p for p in processes if p.poll() is not None]
        assert not ended, [p.communicate()[1] for p in ended]
        time.sleep(0.05)


def check_equal(
    cwd: Path,
    processes: list[int],
    shards: int,
    steps: int,
    names: list[str],
    *,
    rel: float = 1e-9,
) -> None:
    """Check that numbers of processes give the same losses as one process."""
    single = ddp_losses.train_models(shards, steps, names, ProcessGroup())
    for n in processes:
        ranks = start_ranks(n, ddp_losses.__file__, shards, steps, *names, cwd=cwd)
        results = wait_for(ranks, within=900)
        assert not any(code for code, _, _ in results), results
        joint = json.loads(results[0][1].splitlines()[-1])
        for name in names:
            for i, (expected, actual) in enumerate(zip(single[name], joint[name], strict=True)):
                assert actual == pytest.approx(expected, rel=rel, abs=rel / 1000), (
                    f"{name}, {n} processes, step {i + 1}"
                )


def test_two_processes_equal_one_process(tmp_path):
    check_equal(
        tmp_path,
        [2],
        4,
        3,
        ["uneven", "vae", "realnvp", "rbm", "dcgan+overlap", "gpt+fsdp", "ddpm", "stylegan2"],
    )


@pytest.mark.slow
def test_four_processes_equal_two_and_one(tmp_path):
    overlapping = [f"{name}+overlap" for name in FAMILIES]
    check_equal(tmp_path, [2, 4], 4, 20, ["uneven", *FAMILIES, *STATEFUL, *overlapping, *SHARDED])


@pytest.mark.slow
def test_every_recipe_on_two_and_four_processes_equals_one(tmp_path):
    """The joint batch has four shards each time, on one, two or four processes."""
    check_equal(tmp_path, [2, 4], 4, 10, [f"{name}+recipe" for name in RECIPES], rel=1e-5)


# --- resume with another number of processes ------------------------------------------------------

VAE = (
    "device=cpu",
    "device.precision=fp64",
    "device.threads=1",
    "trainer.save_every=2",
    "trainer.batch_size=24",
)
ENDLESS = ("-m", "genlab", "train", *VAE, "trainer.steps=1000000", "out=run")


def test_a_run_of_two_processes_resumes_in_one(genlab, tmp_path):
    """It equals an uninterrupted run, because its two shards per batch are kept."""
    processes = start_ranks(2, *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[1].kill()
    (code, _, err), (killed, _, _) = wait_for(processes, within=60)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert re.fullmatch(rf"genlab: rank 1 on \S+ {SILENT_DEATH}", err.splitlines()[-1])
    assert len(list(tmp_path.glob("**/run.json"))) == 1
    step = RunFolder(tmp_path / "run").load_checkpoint()["step"] + 3
    resumed = genlab("train", "resume=run", f"trainer.steps={step}")
    assert resumed.code == 0
    assert "the run's 2 shards per batch are now distributed over 1 process, 2 each" in resumed.err
    whole = ("trainer.grad_accum_steps=2", "out=whole")
    assert genlab("train", *VAE, f"trainer.steps={step}", *whole).code == 0
    a, b = (RunFolder(tmp_path / name).load_checkpoint() for name in ("run", "whole"))
    assert a["step"] == b["step"] == step
    for key, value in b["model"].items():
        torch.testing.assert_close(a["model"][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "now", "grad_accum_steps", "message"),
    [
        ((2, 1), 2, 1, ""),
        ((2, 1), 1, 2, "2 shards per batch are now distributed over 1 process, 2 each"),
        ((2, 2), 4, 1, "4 shards per batch are now distributed over 4 processes, 1 each"),
        ((2, 1), 4, 1, "continues with 4 shards of the same batches"),
        ((4, 2), 3, 3, "continues with 9 shards"),
    ],
)
def test_the_number_of_shards_is_kept_if_possible(before, now, grad_accum_steps, message):
    processes, old_steps = before
    trainer = {"grad_accum_steps": old_steps, "batch_size": 72}
    options, note = trainer_options_for_processes(trainer, processes=processes, size=now)
    assert options == {"grad_accum_steps": grad_accum_steps, "batch_size": 72}
    assert message in note and bool(message) == bool(note)


def test_a_batch_that_cannot_be_divided_is_refused():
    message = (
        "batch of 24 cannot be divided evenly over 5 processes; it can continue on 1, 2, 3, 4, 6, 8"
    )
    with pytest.raises(ValueError, match=message):
        trainer_options_for_processes(
            {"grad_accum_steps": 1, "batch_size": 24}, processes=2, size=5
        )


# --- all processes end together -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_all(victim, tmp_path):
    processes = start_ranks(3, *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[victim].kill()
    message = rf"genlab: rank {victim} on \S+ {SILENT_DEATH}"
    for rank, (code, _, err) in enumerate(wait_for(processes, within=60)):
        if rank != victim:
            assert code == 1 and re.fullmatch(message, err.splitlines()[-1])
    assert RunFolder(tmp_path / "run").load_checkpoint()["step"] > 0


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_all(tmp_path):
    processes = start_ranks(3, *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[2].send_signal(signal.SIGTERM)
    results = wait_for(processes, within=60)
    assert [code for code, _, _ in results] == [128 + signal.SIGTERM, 0, 0]
    assert "SIGTERM: saved at step" in results[0][2]


@pytest.mark.slow
def test_a_wrong_option_is_reported_once(tmp_path):
    ranks = start_ranks(3, "-m", "genlab", "train", "trainer.stepz=3", cwd=tmp_path)
    results = wait_for(ranks, within=900)
    assert [code for code, _, _ in results] == [2, 2, 2]
    assert (
        results[0][2].startswith("genlab: unknown option 'trainer.stepz'")
        and results[0][2].count("\n") == 1
    )
    assert [err for _, _, err in results[1:]] == ["", ""]


@pytest.mark.slow
def test_processes_with_different_options_are_refused(tmp_path):
    script = tmp_path / "seed_by_rank.py"
    script.write_text(
        "import os, sys\n"
        "from genlab.cli import main as cli\n"
        "sys.argv[1:] = ['train', 'seed=' + os.environ['RANK']]\n"
        "cli.main()\n"
    )
    (code, _, err), (other_code, _, other_err) = wait_for(
        start_ranks(2, script, cwd=tmp_path), within=900
    )
    assert (
        (code, other_code) == (1, 2)
        and "were given different options (seed=0, seed=1)" in err
        and err.startswith("genlab: rank 1")
    )
    assert "different options" in other_err and not list(tmp_path.glob("outputs"))


NEW_RUN = (
    "dataset=image_folder",
    "dataset.path=photos",
    "model.hidden=[8]",
    "trainer.preview_every=0",
    "trainer.save_every=2",
)
NEW_RUN += ("model=vae", "device=cpu", "trainer.batch_size=8", "trainer.steps=4")
RESUME = ("resume=run", "trainer.steps=6")


def delete_newest_checkpoint(disk: Path) -> None:
    RunFolder(disk / "run").checkpoint_files()[-1].unlink()


def delete_all_checkpoints(disk: Path) -> None:
    for path in RunFolder(disk / "run").checkpoint_files():
        path.unlink()


def change_weight(disk: Path) -> None:
    """Change one weight of the newest checkpoint."""
    run = RunFolder(disk / "run")
    state = run.load_checkpoint()
    next(iter(state["model"].values())).view(-1)[0] += 1e-6
    run.save_checkpoint(state, keep=9)


def change_learning_rate(disk: Path) -> None:
    config = disk / "run" / "config.yaml"
    assert "lr: 0.001" in config.read_text()
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))


def delete_image(disk: Path) -> None:
    (disk / "photos" / "0.png").unlink()


def replace_image(disk: Path) -> None:
    (disk / "photos" / "0.png").write_bytes((disk / "photos" / "1.png").read_bytes())


# what another machine's disk differs in -> (the change to it, the command, the message)
DISKS = {
    "an older checkpoint": (delete_newest_checkpoint, RESUME, "step 2 instead of 4,"),
    "no checkpoint": (delete_all_checkpoints, RESUME, "step 0 without a checkpoint instead of 4,"),
    "other weights": (
        change_weight,
        RESUME,
        r": checksum of the checkpoint \w+ instead of \w+;",
    ),
    "another recipe": (
        change_learning_rate,
        RESUME,
        ": optimizer.lr 0.002 instead of 0.001;",
    ),
    "fewer items": (delete_image, (*NEW_RUN, "out=new"), "train items .* instead of "),
    "other items": (
        replace_image,
        (*NEW_RUN, "out=new"),
        r": checksum of the data \w+ instead of \w+;",
    ),
}


@pytest.mark.parametrize(
    "disk", [d if n == 0 else pytest.param(d, marks=pytest.mark.slow) for n, d in enumerate(DISKS)]
)
def test_processes_with_different_disks_are_refused(disk, genlab, tmp_path):
    """Two machines, each with its own disk."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "photos").mkdir(parents=True)
    for i in range(12):
        Image.frombytes("L", (8, 8), bytes(range(i, i + 64))).save(here / "photos" / f"{i}.png")
    assert genlab("train", *NEW_RUN, "out=run", cwd=here).code == 0
    shutil.copytree(here, there)
    change, command, message = DISKS[disk]
    change(there)
    ranks = start_ranks(2, "-m", "genlab", "train", *command, cwd=[here, there])
    results = wait_for(ranks, within=900)
    assert [code for code, _, _ in results] == [2, 2] and results[1][2] == ""
    start = (
        r"genlab: rank 1 on \S+, which reads image_folder in \S*photos, "
        r"would not train the same as rank 0 on \S+: .*"
    )
    err = results[0][2]
    assert re.match(start, err.splitlines()[-1]) and re.search(message, err), err
    assert RunFolder(here / "run").load_checkpoint()["step"] == 4 and not list(
        tmp_path.glob("*/new")
    )


@pytest.mark.slow
def test_a_sweep_in_several_processes_is_refused(tmp_path):
    command = ("-m", "genlab", "train", "-m", "seed=0,1,2", "device=cpu", "trainer.steps=2")
    results = wait_for(start_ranks(2, *command, cwd=tmp_path), within=900)
    assert [code for code, _, _ in results] == [2, 2] and not list(tmp_path.glob("**/run.json"))
    assert "a sweep starts its own processes: run `genlab train -m` once" in results[0][2]


@pytest.mark.slow
def test_an_error_of_rank_0_is_reported_by_all(tmp_path):
    """Only rank 0 writes, and the folder of its checkpoints is gone."""
    processes = start_ranks(3, *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", processes)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    results = wait_for(processes, within=60)
    lines = [err.splitlines()[-1] for _, _, err in results]
    assert all(code for code, _, _ in results)
    reason = r"run/checkpoints/\S+: No such file or directory; .*`genlab train resume=run`"
    assert all(re.fullmatch(rf"genlab: (rank 0 on \S+: )?{reason}", line) for line in lines), lines


@pytest.mark.slow
def test_torchrun_and_a_killed_worker(tmp_path):
    torchrun = popen(*TORCHRUN, "--nproc-per-node=3", *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", [torchrun])
    os.kill(rank_pids(tmp_path)["RANK=1"], signal.SIGKILL)
    ((code, _, err),) = wait_for([torchrun], within=60)
    assert code == 1 and len(re.findall(rf"genlab: rank 1 on \S+ {SILENT_DEATH}", err)) == 2, err
    steps = RunFolder(tmp_path / "run").load_checkpoint()["step"] + 2
    resume = ("-m", "genlab", "train", "resume=run", f"trainer.steps={steps}")
    torchrun = popen(*TORCHRUN, "--nproc-per-node=2", *resume, cwd=tmp_path)
    ((code, out, _),) = wait_for([torchrun], within=900)
    assert code == 0 and out.count(f"trained {steps} steps") == 1


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A SLURM that responds; only some tests of this module need it, unlike in test_slurm."""
    yield from running_cluster()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_srun_and_a_killed_task(slurm, tmp_path):
    """On two nodes, by a SLURM that does not end the step itself."""
    step = ("srun", "--nodes=2", "--ntasks=3", "--kill-on-bad-exit=0", "--wait=0")
    srun = popen(*step, sys.executable, *ENDLESS, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", [srun])
    assert RunFolder(tmp_path / "run").metadata()["processes"] == 3
    os.kill(rank_pids(tmp_path)["SLURM_PROCID=1"], signal.SIGKILL)
    ((code, _, err),) = wait_for([srun], within=60)
    assert code and len(re.findall(rf"genlab: rank 1 on \S+ {SILENT_DEATH}", err)) == 2, err


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize("ends_the_step", [0, 1])
def test_a_sweep_job_resumes_after_one_of_its_processes_was_killed(ends_the_step, slurm, tmp_path):
    """The step ends by itself, or SLURM ends it, as it does for a launcher of a whole node."""
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
    sweep = Sweep(tmp_path, "train", "-m", *MINE, "seed=0", "trainer.steps=6000", *LONG_RUN, *node)
    try:
        sweep.wait(lambda: sweep.has_saved(0))
        os.kill(rank_pids(tmp_path)["SLURM_PROCID=1"], signal.SIGKILL)
        assert sweep.wait_for_end() == 0 and status_and_starts(sweep.folder) == [("done", 2)], (
            sweep.output()
        )
        assert re.search(r"^job 0 .*: (lost|stopped)\b.*; restarting it$", sweep.output(), re.M), (
            sweep.output()
        )
        assert ends_the_step or re.search(
            rf": lost: rank 1 on \S+ {SILENT_DEATH};", sweep.output()
        ), sweep.output()
    finally:
        sweep.cancel()


# --- fully sharded models -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_of_a_sharded_model_is_complete(genlab, tmp_path):
    """Trained with previews and evaluations in two processes, it samples and resumes in one."""
    callbacks = ("trainer.preview_every=3", "trainer.evaluate_every=2", "evaluate.n=20")
    train = (
        "-m",
        "genlab",
        "train",
        *VAE,
        *callbacks,
        "trainer.steps=4",
        "trainer.ema_decay=0.9",
        "out=run",
        "device.fsdp=true",
    )
    (code, _, err), _ = wait_for(start_ranks(2, *train, cwd=tmp_path), within=900)
    assert code == 0 and "VAE (95,104 parameters) trains" in err, err
    run = RunFolder(tmp_path / "run")
    assert len(list(run.samples.glob("*.png"))) == 2
    assert any("evaluation" in line for line in run.read_log())
    assert genlab("sample", "run=run", "n=4").code == 0
    resume = ("-m", "genlab", "train", "resume=run", "trainer.steps=6")
    results = wait_for(start_ranks(2, *resume, cwd=tmp_path), within=900)
    assert results[0][0] == 0
    sharded = run.load_checkpoint()
    for path in run.checkpoint_files()[-1:]:
        path.unlink()
    assert genlab("train", "resume=run", "trainer.steps=6", "device.fsdp=false").code == 0
    whole = run.load_checkpoint()
    assert list(sharded) == list(whole) and sharded["step"] == whole["step"] == 6
    for part in ("model", "ema"):
        for key, value in whole[part].items():
            torch.testing.assert_close(sharded[part][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model=dcgan",), "GANTrainer needs the whole model"),
        (("model=made",), "MADE uses weights of parts that it does not call"),
        (("device.precision=fp16",), "device.precision=bf16"),
        (("trainer.batch_size=auto",), "give a number"),
    ],
)
def test_a_model_that_cannot_be_sharded_is_refused(options, message, tmp_path):
    command = ("-m", "genlab", "train", "device=cpu", "device.fsdp=true", *options)
    ranks = start_ranks(2, *command, cwd=tmp_path)
    (code, _, err), (other_code, _, other_err) = wait_for(ranks, within=900)
    assert (code, other_code, other_err) == (2, 2, "") and message in err.splitlines()[-1]
