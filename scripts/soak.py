"""Train random recipes under random kills and faults for a stated time; each must end as its undisturbed twin, bit for bit.

    python scripts/soak.py --minutes 60

A round is one recipe with random options, trained once in peace and once disturbed: killed (SIGKILL, TERM, USR2, INT) at
random moments, its newest checkpoint cut short or changed, its disk filled or made read-only (where a disk may be mounted), one
of its images taken away for a while, a second training started in its folder, samples drawn meanwhile, the clock set back or
forth (where libfaketime is there). It is started again until it is done. In every fourth round two processes train one model, of
which one is killed and the other has to say so and end; two or one go on. What counts as lost: a difference in the end, a step
that was saved and is not there, an end that is neither done nor one clear line. The exit code is 1 if anything was lost.
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

from disturbed import (  # noqa: E402
    UNHEARD,
    Nursery,
    Process,
    Together,
    begun,
    command,
    differences,
    newest,
    promised,
)
from PIL import Image  # noqa: E402

from genlab.distributed.supervisor import SILENT  # noqa: E402
from genlab.errors import UserError  # noqa: E402
from genlab.runs.run_folder import RunFolder  # noqa: E402

PHOTOS = ("dataset=image_folder", "dataset.resident=false", "dataset.path=photos")
RECIPES = {
    "vae": ("model=vae", "model.hidden=[32]", "trainer.steps=400"),
    "vae of a folder": (
        "model=vae",
        "model.hidden=[32]",
        "trainer.steps=200",
        "dataset.workers=1",
        *PHOTOS,
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
# Halves are summed to the same bits by one process and by two; in less than fp64 the logged means are rounded at other places.
PAIR = ("model=vae", "model.hidden=[32]", "trainer.steps=600", "device.precision=fp64")
ALWAYS = ("device=cpu", "device.threads=1", "trainer.log_every=7")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketime.so.1")), None)
MEGABYTES = 256  # of the disk that is filled


class Soak:
    """Rounds of disturbed trainings in one folder, and what became of them."""

    def __init__(self, folder: Path, seed: int, nursery: Nursery) -> None:
        self.folder, self.nursery, self.chance = folder, nursery, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.mounted = mount(folder, f"size={MEGABYTES}m")
        self.photos = folder / "photos"
        self.photos.mkdir()
        for i in range(64):
            Image.frombytes("L", (8, 8), self.chance.randbytes(64)).save(
                self.photos / f"{i:02d}.png"
            )

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    # --- one recipe -----------------------------------------------------------------------------------------------------

    def round(self, number: int) -> None:
        """Train one recipe in peace and disturbed, and compare."""
        chance = self.chance
        name = chance.choice(list(RECIPES))
        self.save_every = chance.choice([3, 10, 25])
        options = (
            *RECIPES[name], *ALWAYS, f"seed={chance.randrange(1000)}", f"trainer.keep={chance.randint(2, 4)}",
            f"trainer.save_every={self.save_every}", f"trainer.preview_every={chance.choice([0, 20])}",
        )  # fmt: skip
        if name not in ("gmm", "rbm"):
            options += (f"trainer.ema={chance.choice([0, 0.9])}",)
        self.whole, self.part, self.options, self.name = (
            *(self.folder / f"{w}{number}" for w in ("whole", "part")),
            options,
            name,
        )
        began = time.monotonic()
        process = self.start(self.whole)
        if process.finish() != 0:
            self.lose(f"the undisturbed run ended with\n{process.said}")
            return
        self.last, self.lasted = newest(self.whole), time.monotonic() - began
        for _ in range(chance.randint(2, 6)):
            faults = (
                self.cut,
                self.fill,
                self.close_folder,
                self.second,
                self.ask,
                self.take_away,
                self.jump,
            )
            chance.choice((*faults, self.kill, self.kill, self.kill))()
        for _ in range(3):
            if newest(self.part) < self.last:
                self.done(self.start(self.part))
        self.compare()

    def compare(self) -> None:
        """Hold what became of the disturbed run against its twin."""
        self.counts["compared"] += 1
        try:
            if wrong := differences(self.whole, self.part):
                self.lose(f"differs in {', '.join(wrong)}")
        except UserError as error:
            self.lose(str(error))

    def start(self, folder: Path) -> Process:
        """Start the run in a folder, or go on with it."""
        self.counts["starts"] += 1
        self.counts["resumes"] += (folder / "run.json").exists()
        return self.nursery.start(*command(folder, *self.options), cwd=self.folder)

    def done(self, process: Process, *allowed: str) -> bool:
        """Wait for an end that must be a done run, or one line with one of these words in it; return whether it is done."""
        code, said = process.finish(), process.said.splitlines()
        if code == 0:
            return True
        if code == 2 and any(word in said[-1] for word in allowed):
            return False
        self.lose(f"exit code {code}: {said[-1] if said else 'it said nothing'}")
        return False

    def running(self) -> Process | None:
        """Return a run that has been at work for a random while; None if it was done by then."""
        process = self.start(self.part)
        if process.wait(self.chance.uniform(0.3, 1.0) * self.lasted * self.chance.random() + 0.05):
            self.done(process)
            return None
        return process

    def whole_steps(self) -> int:
        """Return the step of the newest checkpoint that is whole."""
        try:
            return RunFolder(self.part).load()["step"] if RunFolder(self.part).steps() else 0
        except UserError:
            return 0

    def check_saved(self, step: int) -> None:
        """Hold the newest checkpoint that is whole against a step that was saved."""
        if self.whole_steps() < step:
            self.lose(
                f"step {step} was saved, and {self.whole_steps()} is the newest that is whole"
            )

    def lose(self, what: str) -> None:
        self.lost.append(f"{self.name} in {self.part}: {what}")
        print(f"LOST: {self.lost[-1]}", flush=True)

    # --- two processes that train one model ---------------------------------------------------------------------------------

    def pair(self, number: int) -> None:
        """Train with two processes in peace, and with two of which one is killed, to go on with two or one; compare."""
        chance, self.name = self.chance, "vae of two processes"
        self.save_every = chance.choice([3, 10, 25])
        self.options = (
            *PAIR,
            *ALWAYS,
            f"seed={chance.randrange(1000)}",
            f"trainer.save_every={self.save_every}",
        )
        self.whole, self.part = (self.folder / f"{w}{number}" for w in ("whole", "part"))
        if (process := self.together(self.whole)).finish() != 0:
            self.lose(f"the undisturbed run ended with\n{process.said}")
            return
        self.last = newest(self.whole)
        for _ in range(chance.randint(1, 3)):
            self.bereave()
        if (
            newest(self.part) < self.last
            and chance.random() < 0.5
            and (again := self.together(self.part)).finish() != 0
        ):
            self.lose(f"two that went on ended with\n{again.said}")
        if newest(self.part) < self.last:
            self.counts["one for two"] += 1
            self.done(self.start(self.part))
        self.compare()

    def together(self, folder: Path) -> Together:
        """Start a run of two processes in a folder, or go on with it."""
        self.counts["starts"] += 1
        self.counts["resumes"] += (folder / "run.json").exists()
        return Together(
            2, *command(folder, *self.options), cwd=self.folder, said=self.folder / "said"
        )

    def bereave(self) -> None:
        """Kill one of two processes at a random moment of their training; the other has to say so, and both to end."""
        if newest(self.part) == self.last:
            return
        process, victim = self.together(self.part), self.chance.randrange(2)
        at = self.chance.randrange(newest(self.part), self.last)
        process.wait(lambda: begun(process.said) is not None and newest(self.part) >= at)
        process.wait(lambda: False, self.chance.uniform(0, 0.1))
        killed, code = process.kill(victim), process.finish()
        if code == 0 or "trained " in process.said:  # it was quicker
            return
        self.counts["killed one of two"] += killed
        if not re.search(
            rf"^genlab: rank {victim} on \S+ {re.escape(SILENT)}$", process.said, re.M
        ):
            self.lose(f"rank {victim} was killed, and the end was\n{process.said}")
        self.check_saved(promised(self.part, self.save_every))

    # --- what is done to it -----------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Send a signal at a random moment; what a run said it saved must be there."""
        number = self.chance.choice(SIGNALS)
        if (process := self.running()) is None:
            return
        self.counts[f"killed by {number.name}"] += 1
        process.send(number)
        if number == signal.SIGKILL:
            process.wait()
            self.check_saved(promised(self.part, self.save_every))
        elif (code := process.finish()) == 128 + number:
            said = [line for line in process.said.splitlines() if "saved at step" in line]
            step = (
                int(said[0].partition("saved at step ")[2].partition(";")[0].replace(",", ""))
                if said
                else 0
            )
            self.check_saved(step)
        elif code not in (
            0,
            130,
            UNHEARD,
        ):  # it had ended by itself, or had not yet begun to listen
            self.lose(f"exit code {code} after {number.name}: {process.said}")

    def cut(self) -> None:
        """Cut the newest of at least two checkpoints short, or change a byte of it."""
        steps = RunFolder(self.part).steps()
        if len(steps) < 2 or newest(self.part) == self.last:
            return
        data = bytearray(steps[-1].read_bytes())
        if self.chance.random() < 0.7:
            self.counts["fault: checkpoint cut short"] += 1
            del data[self.chance.randrange(len(data)) :]
        else:
            self.counts["fault: checkpoint changed"] += 1
            for at in range(len(data) // 3, 2 * len(data) // 3):
                data[at] ^= 255
        steps[-1].write_bytes(data)
        process = self.start(self.part)
        if self.done(process) and "is used instead" not in process.said:
            self.lose(f"a damaged {steps[-1].name} was not spoken of")

    def fill(self) -> None:
        """Fill the disk, start, and give the room back."""
        if not self.mounted or (process := self.running()) is None:
            return
        self.counts["fault: full disk"] += 1
        before, left = self.whole_steps(), os.statvfs(self.folder)
        filler = self.folder / "filler"
        try:
            with open(filler, "wb") as f:
                f.write(
                    bytes(max(0, left.f_bavail * left.f_frsize - 1024 * self.chance.randrange(200)))
                )
        except OSError:
            pass  # the run was quicker: it is full
        self.done(process, "No space left")
        filler.unlink()
        self.check_saved(before)

    def close_folder(self) -> None:
        """Make the disk read-only for a start."""
        if not self.mounted or not (self.part / "run.json").exists():
            return
        self.counts["fault: read-only"] += 1
        mount(self.folder, "remount,ro")
        self.done(self.start(self.part), "Read-only file system")
        mount(self.folder, "remount,rw")

    def second(self) -> None:
        """Start a second training in the folder of one that is at work."""
        if (process := self.running()) is None:
            return
        self.counts["fault: second process"] += 1
        self.done(
            self.start(self.part), "another process is training", "holds a run already", "is done"
        )
        self.done(process)

    def ask(self) -> None:
        """Draw samples while the run trains."""
        if (process := self.running()) is None:
            return
        if RunFolder(self.part).steps():
            self.counts["fault: sampling meanwhile"] += 1
            self.done(
                self.nursery.start(
                    "sample", f"run={self.part}", "n=2", "device=cpu", cwd=self.folder
                ),
                "has no sample",
            )
        self.done(process)

    def take_away(self) -> None:
        """Take an image away from a run that streams, and put it back when the run has said so."""
        if self.name != "vae of a folder" or (process := self.running()) is None:
            return
        self.counts["fault: image taken away"] += 1
        path = self.chance.choice(sorted(self.photos.iterdir()))
        path.rename(self.folder / "away.png")
        self.done(process, "has changed since the run began", "is not what the run began with")
        (self.folder / "away.png").rename(path)

    def jump(self) -> None:
        """Set the clock years back or forth for a start."""
        if FAKETIME is None:
            return
        self.counts["fault: clock jump"] += 1
        jump = self.chance.choice(["-3y", "+3y", "-1d"])
        environment = {
            **os.environ,
            "LD_PRELOAD": FAKETIME,
            "FAKETIME": jump,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        words = [sys.executable, "-m", "genlab", *command(self.part, *self.options)]
        self.counts["starts"] += 1
        ended = subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            self.lose(f"exit code {ended.returncode} under a clock of {jump}: {ended.stderr}")


def mount(folder: Path, options: str) -> bool:
    """Mount a disk in memory in a folder, or change how it is mounted; return whether that may be done here."""
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
    given = parser.parse_args()
    until, rounds = time.monotonic() + 60 * given.minutes, 0
    with tempfile.TemporaryDirectory() as folder, Nursery() as nursery:
        soak = Soak(Path(folder), given.seed, nursery)
        try:
            while time.monotonic() < until:
                (soak.pair if rounds % 4 == 1 else soak.round)(rounds)
                rounds += 1
                for path in (soak.whole, soak.part):
                    subprocess.run(["rm", "-rf", str(path)], check=True)
        finally:
            soak.close()
        for what, n in [("rounds", rounds), *sorted(soak.counts.items()), ("lost", len(soak.lost))]:
            print(f"{what:<32}{n:>6}")
        if not soak.mounted:
            print("no disk could be mounted here: none was filled or made read-only")
        if FAKETIME is None:
            print("libfaketime is not there: the clock was left alone")
    sys.exit(1 if soak.lost else 0)


if __name__ == "__main__":
    main()
