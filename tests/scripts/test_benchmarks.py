"""The benchmarks run at their smallest size."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from helpers.cli_runner import REPOSITORY

PAIR_KEYS = {
    "what",
    "against",
    "genlab_s",
    "other_s",
    "ratio",
    "median_ratio",
    "quartiles",
    "turns",
    "block",
    "steps",
    "unit",
    "genlab_us",
    "other_us",
    "overhead_us",
}
GPU_KEYS = {
    "case",
    "mode",
    "what",
    "batch",
    "parameters",
    "genlab_items_s",
    "other_items_s",
    "median_ratio",
    "genlab_us",
    "other_us",
    "turns",
    "block",
    "gflop_step",
    "tflops",
    "share_of_peak",
    "memory_mib",
    "other_memory_mib",
}


@pytest.fixture
def run_benchmark(tmp_path, monkeypatch):
    """`run_benchmark("run", …)` runs a script in this process and returns the JSON it writes."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "benchmarks")
    monkeypatch.chdir(tmp_path)

    def run_script(script: str, *arguments: object) -> dict:
        out = tmp_path / "benchmark.json"
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--out", str(out)])
        importlib.import_module(script).main()
        return json.loads(out.read_text())

    return run_script


def test_cpu_benchmark_writes_each_pair_or_why_it_is_missing(run_benchmark):
    names = ("vae_loop", "vae_loaders", "rbm", "sampling", "cached_sampling")
    record = run_benchmark("run", *names, "--share", 0.0001, "--data", "fake")
    assert {"command", "machine", "versions", "share", "data"} <= record.keys()
    assert all(row["threads"] >= 1 for row in record["pairs"].values() if "skipped" not in row)
    pairs = record["pairs"]
    skipped = {name for name, row in pairs.items() if "skipped" in row}
    assert skipped == {"vae_loader_0", "vae_loader_1", "vae_loader_2"}  # they need MNIST's files
    assert set(pairs) - skipped == {
        "vae_loop",
        "rbm_loop",
        "rbm_sklearn",
        "rbm_sklearn_float32",
        "sample_vae",
        "sample_dcgan",
        "sample_ddim",
        "sample_gpt_pixels",
        "sample_gpt_text",
    }
    for name in set(pairs) - skipped:
        row = pairs[name]
        assert row.keys() >= PAIR_KEYS, name
        assert row["ratio"] == pytest.approx(row["genlab_s"] / row["other_s"])
        assert row["quartiles"][0] <= row["median_ratio"] <= row["quartiles"][1]
        assert row["steps"] == row["turns"] * row["block"]
    row = pairs["rbm_sklearn"]
    assert row["met"] == (row["median_ratio"] <= row["bar"])


def test_gpu_benchmark_runs_on_a_cpu(run_benchmark):
    small = ("--device", "cpu", "--steps", 2, "--turns", 1, "--small")
    record = run_benchmark("gpu", "dcgan64", "rbm", *small, "--modes", "fp32", "bf16")
    assert record["small"] and record["device"] == "cpu"
    assert set(record["peaks"]) == {"fp32", "tf32", "bf16"}
    assert all(peak["source"].startswith("measured") for peak in record["peaks"].values())
    assert set(record["rows"]) == {"dcgan64 fp32", "dcgan64 bf16", "rbm fp32", "rbm bf16"}
    for row in record["rows"].values():
        assert row.keys() >= GPU_KEYS
        assert row["genlab_items_s"] == pytest.approx(row["batch"] / row["genlab_us"] * 1e6)
        assert row["tflops"] == pytest.approx(row["gflop_step"] / row["genlab_us"] * 1e3)
        assert row["memory_mib"] is None  # on a CPU only the memory of the process is known
