"""The benchmarks run at their smallest and write what they say; the page of their numbers is the one that the script writes."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys

import pytest
from helpers.cli_runner import REPOSITORY

PAIR = {
    "what", "against", "genlab_s", "other_s", "ratio", "median_ratio", "quartiles", "turns", "block", "steps", "unit",
    "genlab_us", "other_us", "overhead_us",
}  # fmt: skip
GPU = {
    "case", "mode", "what", "batch", "parameters", "genlab_items_s", "other_items_s", "median_ratio", "genlab_us", "other_us",
    "turns", "block", "gflop_step", "tflops", "share_of_peak", "memory_mib", "other_memory_mib",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run("bench", …)`: what that script writes, in this process, which has torch imported already."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: object) -> dict:
        out = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--out", str(out)])
        importlib.import_module(script).main()
        return json.loads(out.read_text())

    return run


def test_the_benchmark_writes_every_pair_or_why_it_is_absent(run):
    names = ("vae_loop", "vae_loaders", "rbm", "sampling", "cached_sampling")
    found = run("bench", *names, "--share", 0.0001, "--data", "fake")
    assert {"command", "machine", "versions", "share", "data"} <= found.keys()
    assert all(row["threads"] >= 1 for row in found["pairs"].values() if "skipped" not in row)
    pairs = found["pairs"]
    absent = {name for name, row in pairs.items() if "skipped" in row}
    assert absent == {"vae_loader_0", "vae_loader_1", "vae_loader_2"}  # which need MNIST's files
    assert set(pairs) - absent == {
        "vae_loop", "rbm_loop", "rbm_sklearn", "rbm_sklearn_float32", "sample_vae", "sample_dcgan", "sample_ddim",
        "sample_gpt_pixels", "sample_gpt_text",
    }  # fmt: skip
    for name in set(pairs) - absent:
        row = pairs[name]
        assert row.keys() >= PAIR, name
        assert row["ratio"] == pytest.approx(row["genlab_s"] / row["other_s"])
        assert row["quartiles"][0] <= row["median_ratio"] <= row["quartiles"][1]
        assert row["steps"] == row["turns"] * row["block"]
    judged = pairs["rbm_sklearn"]
    assert judged["met"] == (judged["median_ratio"] <= judged["bar"])


def test_the_benchmark_for_gpus_runs_on_a_processor(run):
    small = ("--device", "cpu", "--steps", 2, "--turns", 1, "--small")
    found = run("bench_gpu", "dcgan64", "rbm", *small, "--modes", "fp32", "bf16")
    assert found["small"] and found["device"] == "cpu"
    assert set(found["peaks"]) == {"fp32", "tf32", "bf16"}
    assert all(peak["source"].startswith("measured") for peak in found["peaks"].values())
    assert set(found["rows"]) == {"dcgan64 fp32", "dcgan64 bf16", "rbm fp32", "rbm bf16"}
    for row in found["rows"].values():
        assert row.keys() >= GPU
        assert row["genlab_items_s"] == pytest.approx(row["batch"] / row["genlab_us"] * 1e6)
        assert row["tflops"] == pytest.approx(row["gflop_step"] / row["genlab_us"] * 1e3)
        assert row["memory_mib"] is None  # a processor's memory is the whole process's


def test_the_page_of_the_benchmarks_is_the_one_that_the_script_writes(tmp_path):
    for name in ("README.md", "docs", "scripts"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    page = tmp_path / "docs" / "benchmarks" / "README.md"
    before = page.read_text()
    subprocess.run([sys.executable, tmp_path / "scripts" / "report.py"], check=True, cwd=tmp_path)
    assert page.read_text() == before
