"""Train random recipes under random faults; each must end like its undisturbed twin.

    python scripts/soak.py --minutes 60

Each round trains one recipe with random options twice: once undisturbed, and once under faults.
The faults are: signals (SIGKILL, SIGTERM, SIGUSR2, SIGINT) at random moments, a newest checkpoint
that is truncated or corrupted, a full or read-only disk (where a disk may be mounted), a missing
image, a second training in the same folder, sampling during training, and a changed clock (where
libfaketime is installed). The run is started again until it has finished, and its last checkpoint
must equal the twin's bit for bit. In every fourth round, two processes train one model and one of
them is killed: the other must report it and exit, and the run continues with two processes or one.
Counted as lost are: a difference at the end, a saved step that is missing, and an exit that is
neither success nor one clear line. The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import glob
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.kill_harness import (  # noqa: E402
    KILLED,
    ForkServer,
    Process,
    TorchrunTraining,
    differences,
    min_resume_step,
    newest_step,
    start_step,
    train_or_resume,
)
from PIL import Image  # noqa: E402

from genlab.distributed.supervisor import SILENT_DEATH  # noqa: E402
from genlab.errors import UserError  # noqa: E402
from genlab.runs.run_folder import RunFolder  # noqa: E402

FOLDER_OPTIONS = ("dataset=image_folder", "dataset.cache_in_memory=false", "dataset.path=photos")
RECIPES = {
    "vae": ("model=vae", "model.hidden=[32]", "trainer.steps=400"),
    "vae on a folder": (
        "model=vae",
        "model.hidden=[32]",
        "trainer.steps=200",
        "dataset.workers=1",
        *FOLDER_OPTIONS,
    ),
    "dcgan": ("model=dcgan", "model.width=8", "dataset.size=16", "trainer.steps=60"),
    "sngan": ("model=sngan", "model.width=8", "dataset.size=16", "trainer.steps=40"),
    "realnvp_points": ("model=realnvp_points", "trainer.steps=200"),
    "made": ("model=made", "model.hidden=[64]", "trainer.steps=200"),
    "rbm": ("model=rbm", "model.hidden=64", "trainer.steps=600"),
    "gmm": ("model=gmm", "trainer.steps=20"),
    "ddpm_small": (
        "model=ddpm_small",
        "model.timesteps=100",
        "trainer.steps=60",
        "trainer.batch_size=16",
    ),
    "edm_points": ("model=edm_points", "trainer.steps=300"),
}
# fp64, so that the logged means of one process and of two are rounded to the same bits.
TWO_PROCESS_OPTIONS = (
    "model=vae",
    "model.hidden=[32]",
    "trainer.steps=600",
    "device.precision=fp64",
)
COMMON_OPTIONS = ("device=cpu", "device.threads=1", "trainer.log_every=7")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
LIBFAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketime.so.1")), None)
DISK_MB = 256  # size of the disk that the test fills


class Soak:
    """Rounds of trainings under faults in one folder, with counts of faults and losses."""

    def __init__(self, folder: Path, seed: int, fork_server: ForkServer) -> None:
        self.folder, self.fork_server, self.random = folder, fork_server, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.has_disk = mount_tmpfs(folder, f"size={DISK_MB}m")
        self.photos = folder / "photos"
        self.photos.mkdir()
        for i in range(64):
            Image.frombytes("L", (8, 8), self.random.randbytes(64)).save(
                self.photos / f"{i:02d}.png"
            )

    def close(self) -> None:
        if self.has_disk:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    # --- one recipe -------------------------------------------------------------------------------

    def run_round(self, number: int) -> None:
        """Train one recipe undisturbed and under faults, and compare."""
        rng = self.random
        name = rng.choice(list(RECIPES))
        self.save_every = rng.choice([3, 10, 25])
        self.name = name
        self.reference = self.folder / f"reference{number}"
        self.disturbed = self.folder / f"disturbed{number}"
        self.options = (
            *RECIPES[name],
            *COMMON_OPTIONS,
            f"seed={rng.randrange(1000)}",
            f"trainer.keep_checkpoints={rng.randint(2, 4)}",
            f"trainer.save_every={self.save_every}",
            f"trainer.preview_every={rng.choice([0, 20])}",
        )
        if name not in ("gmm", "rbm"):
            self.options += (f"trainer.ema_decay={rng.choice([0, 0.9])}",)
        start = time.monotonic()
        process = self.start_or_resume_run(self.reference)
        if process.finish() != 0:
            self.record_failure(f"the undisturbed run exited with\n{process.output}")
            return
        self.last, self.lasted = newest_step(self.reference), time.monotonic() - start
        for _ in range(rng.randint(2, 6)):
            faults = (
                self.corrupt_checkpoint,
                self.fill_disk,
                self.make_read_only,
                self.start_second_training,
                self.sample_meanwhile,
                self.remove_image,
                self.change_clock,
            )
            rng.choice((*faults, self.send_signal, self.send_signal, self.send_signal))()
        for _ in range(3):
            if newest_step(self.disturbed) < self.last:
                self.wait_and_check_exit(self.start_or_resume_run(self.disturbed))
        self.compare_with_undisturbed_run()

    def compare_with_undisturbed_run(self) -> None:
        """Compare the disturbed run with its undisturbed twin."""
        self.counts["compared"] += 1
        try:
            if different := differences(self.reference, self.disturbed):
                self.record_failure(f"differs in {', '.join(different)}")
        except UserError as error:
            self.record_failure(str(error))

    def start_or_resume_run(self, folder: Path) -> Process:
        """Start the run of a folder, or resume it."""
        self.counts["starts"] += 1
        self.counts["resumes"] += (folder / "run.json").exists()
        return self.fork_server.start(*train_or_resume(folder, *self.options), cwd=self.folder)

    def wait_and_check_exit(self, process: Process, *allowed: str) -> bool:
        """Wait for a process, which must finish or fail with one line that has an allowed text.

        Returns:
            Whether the run finished.
        """
        code, said = process.finish(), process.output.splitlines()
        if code == 0:
            return True
        if code == 2 and any(word in said[-1] for word in allowed):
            return False
        self.record_failure(f"exit code {code}: {said[-1] if said else 'no output'}")
        return False

    def start_and_wait(self) -> Process | None:
        """Start the run and wait a random time; return None if it finished within that time."""
        process = self.start_or_resume_run(self.disturbed)
        if process.wait(self.random.uniform(0.3, 1.0) * self.lasted * self.random.random() + 0.05):
            self.wait_and_check_exit(process)
            return None
        return process

    def newest_intact_step(self) -> int:
        """Return the step of the newest checkpoint that loads."""
        run = RunFolder(self.disturbed)
        try:
            return run.load_checkpoint()["step"] if run.checkpoint_files() else 0
        except UserError:
            return 0

    def check_saved_step_exists(self, step: int) -> None:
        """Check that a saved step is still there."""
        if (newest_step := self.newest_intact_step()) < step:
            self.record_failure(f"step {step} was saved; {newest_step} is the newest that loads")

    def record_failure(self, what: str) -> None:
        self.lost.append(f"{self.name} in {self.disturbed}: {what}")
        print(f"LOST: {self.lost[-1]}", flush=True)

    # --- two processes that train one model -------------------------------------------------------

    def run_two_process_round(self, number: int) -> None:
        """Train with two processes undisturbed, and with kills of one of them; compare."""
        rng, self.name = self.random, "vae of two processes"
        self.save_every = rng.choice([3, 10, 25])
        self.options = (
            *TWO_PROCESS_OPTIONS,
            *COMMON_OPTIONS,
            f"seed={rng.randrange(1000)}",
            f"trainer.save_every={self.save_every}",
        )
        self.reference = self.folder / f"reference{number}"
        self.disturbed = self.folder / f"disturbed{number}"
        if (process := self.start_or_resume_two_processes(self.reference)).finish() != 0:
            self.record_failure(f"the undisturbed run exited with\n{process.output}")
            return
        self.last = newest_step(self.reference)
        for _ in range(rng.randint(1, 3)):
            self.kill_one_of_two()
        if (
            newest_step(self.disturbed) < self.last
            and rng.random() < 0.5
            and (again := self.start_or_resume_two_processes(self.disturbed)).finish() != 0
        ):
            self.record_failure(f"the resumed pair exited with\n{again.output}")
        if newest_step(self.disturbed) < self.last:
            self.counts["one for two"] += 1
            self.wait_and_check_exit(self.start_or_resume_run(self.disturbed))
        self.compare_with_undisturbed_run()

    def start_or_resume_two_processes(self, folder: Path) -> TorchrunTraining:
        """Start the run of a folder with two processes, or resume it."""
        self.counts["starts"] += 1
        self.counts["resumes"] += (folder / "run.json").exists()
        return TorchrunTraining(
            2,
            *train_or_resume(folder, *self.options),
            cwd=self.folder,
            output=self.folder / "output",
        )

    def kill_one_of_two(self) -> None:
        """Kill one of two processes at a random moment; the other must report it and exit."""
        if newest_step(self.disturbed) == self.last:
            return
        process, victim = (
            self.start_or_resume_two_processes(self.disturbed),
            self.random.randrange(2),
        )
        at = self.random.randrange(newest_step(self.disturbed), self.last)
        process.wait(
            lambda: start_step(process.output) is not None and newest_step(self.disturbed) >= at
        )
        process.wait(lambda: False, self.random.uniform(0, 0.1))
        killed, code = process.kill(victim), process.finish()
        if code == 0 or "trained " in process.output:  # it finished before the kill
            return
        self.counts["killed one of two"] += killed
        if not re.search(
            rf"^genlab: rank {victim} on \S+ {re.escape(SILENT_DEATH)}$", process.output, re.M
        ):
            self.record_failure(f"rank {victim} was killed, and the end was\n{process.output}")
        self.check_saved_step_exists(min_resume_step(self.disturbed, self.save_every))

    # --- the faults -------------------------------------------------------------------------------

    def send_signal(self) -> None:
        """Send a signal at a random moment; what the run reported as saved must be there."""
        number = self.random.choice(SIGNALS)
        if (process := self.start_and_wait()) is None:
            return
        self.counts[f"killed by {number.name}"] += 1
        process.send(number)
        if number == signal.SIGKILL:
            process.wait()
            self.check_saved_step_exists(min_resume_step(self.disturbed, self.save_every))
        elif (code := process.finish()) == 128 + number:
            saved = re.search(r"saved at step ([\d,]+)", process.output)
            self.check_saved_step_exists(int(saved[1].replace(",", "")) if saved else 0)
        elif code not in (0, 130, KILLED):  # finished, or did not handle signals yet
            self.record_failure(f"exit code {code} after {number.name}: {process.output}")

    def corrupt_checkpoint(self) -> None:
        """Truncate the newest of at least two checkpoints, or invert a third of its bytes."""
        steps = RunFolder(self.disturbed).checkpoint_files()
        if len(steps) < 2 or newest_step(self.disturbed) == self.last:
            return
        data = bytearray(steps[-1].read_bytes())
        if self.random.random() < 0.7:
            self.counts["fault: checkpoint cut short"] += 1
            del data[self.random.randrange(len(data)) :]
        else:
            self.counts["fault: checkpoint changed"] += 1
            for at in range(len(data) // 3, 2 * len(data) // 3):
                data[at] ^= 255
        steps[-1].write_bytes(data)
        process = self.start_or_resume_run(self.disturbed)
        if self.wait_and_check_exit(process) and "is used instead" not in process.output:
            self.record_failure(f"a damaged {steps[-1].name} was not reported")

    def fill_disk(self) -> None:
        """Fill the disk during a run, then free it."""
        if not self.has_disk or (process := self.start_and_wait()) is None:
            return
        self.counts["fault: full disk"] += 1
        before, left = self.newest_intact_step(), os.statvfs(self.folder)
        filler = self.folder / "filler"
        try:
            with open(filler, "wb") as f:
                f.write(
                    bytes(max(0, left.f_bavail * left.f_frsize - 1024 * self.random.randrange(200)))
                )
        except OSError:
            pass  # the run has filled the disk already
        self.wait_and_check_exit(process, "No space left")
        filler.unlink()
        self.check_saved_step_exists(before)

    def make_read_only(self) -> None:
        """Make the disk read-only during a start."""
        if not self.has_disk or not (self.disturbed / "run.json").exists():
            return
        self.counts["fault: read-only"] += 1
        mount_tmpfs(self.folder, "remount,ro")
        self.wait_and_check_exit(self.start_or_resume_run(self.disturbed), "Read-only file system")
        mount_tmpfs(self.folder, "remount,rw")

    def start_second_training(self) -> None:
        """Start a second training in the folder of a running one."""
        if (process := self.start_and_wait()) is None:
            return
        self.counts["fault: second process"] += 1
        self.wait_and_check_exit(
            self.start_or_resume_run(self.disturbed),
            "another process is training",
            "holds a run already",
            "is done",
        )
        self.wait_and_check_exit(process)

    def sample_meanwhile(self) -> None:
        """Draw samples while the run trains."""
        if (process := self.start_and_wait()) is None:
            return
        if RunFolder(self.disturbed).checkpoint_files():
            self.counts["fault: sampling meanwhile"] += 1
            self.wait_and_check_exit(
                self.fork_server.start(
                    "sample", f"run={self.disturbed}", "n=2", "device=cpu", cwd=self.folder
                ),
                "has no sample",
            )
        self.wait_and_check_exit(process)

    def remove_image(self) -> None:
        """Remove an image that a run streams, and restore it after the run has reported it."""
        if self.name != "vae on a folder" or (process := self.start_and_wait()) is None:
            return
        self.counts["fault: image taken away"] += 1
        path = self.random.choice(sorted(self.photos.iterdir()))
        path.rename(self.folder / "away.png")
        self.wait_and_check_exit(
            process, "has changed since the run began", "is not what the run began with"
        )
        (self.folder / "away.png").rename(path)

    def change_clock(self) -> None:
        """Move the clock by years during a start."""
        if LIBFAKETIME is None:
            return
        self.counts["fault: clock jump"] += 1
        jump = self.random.choice(["-3y", "+3y", "-1d"])
        environment = {
            **os.environ,
            "LD_PRELOAD": LIBFAKETIME,
            "FAKETIME": jump,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        words = [sys.executable, "-m", "genlab", *train_or_resume(self.disturbed, *self.options)]
        self.counts["starts"] += 1
        ended = subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            self.record_failure(
                f"exit code {ended.returncode} under a clock of {jump}: {ended.stderr}"
            )


def mount_tmpfs(folder: Path, options: str) -> bool:
    """Mount a tmpfs in a folder, or remount it; return whether this process may do so."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    until, rounds = time.monotonic() + 60 * arguments.minutes, 0
    with tempfile.TemporaryDirectory() as folder, ForkServer() as fork_server:
        soak = Soak(Path(folder), arguments.seed, fork_server)
        try:
            while time.monotonic() < until:
                (soak.run_two_process_round if rounds % 4 == 1 else soak.run_round)(rounds)
                rounds += 1
                for path in (soak.reference, soak.disturbed):
                    subprocess.run(["rm", "-rf", str(path)], check=True)
        finally:
            soak.close()
        for what, n in [("rounds", rounds), *sorted(soak.counts.items()), ("lost", len(soak.lost))]:
            print(f"{what:<32}{n:>6}")
        if not soak.has_disk:
            print("no disk could be mounted: the faults of disks were left out")
        if LIBFAKETIME is None:
            print("libfaketime is not installed: the clock was not changed")
    sys.exit(1 if soak.lost else 0)


if __name__ == "__main__":
    main()
