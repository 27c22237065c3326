"""The tables of docs/speed.md and docs/benchmarks/README.md, from docs/benchmarks/*.json."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_pair(name: str) -> str:
    """Return which table shows a pair: "sampling", "loop", or "package"."""
    if name.startswith("sample_"):
        return "sampling"
    return "loop" if name.endswith("_loop") else "package"


def measured_pairs_of_kind(record: Record, kind: str) -> list[Record]:
    """Return the measured rows of cpu.json of one kind: "loop", "package" or "sampling"."""
    pairs = record.get("pairs", {})
    return [
        row for name, row in pairs.items() if table_of_pair(name) == kind and "skipped" not in row
    ]


# --- cells ----------------------------------------------------------------------------------------


def format_ratio(row: Record) -> str:
    """Return the ratio of a pair: the median of the turns, and their quartiles."""
    low, high = row["quartiles"]
    digits = 2 if low >= 0.1 else 3
    return f"{row['median_ratio']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def format_allowed_ratio(row: Record) -> str:
    """Return the largest allowed ratio of a pair and whether it was met."""
    return f"≤ {row['bar']:.3g}: {'met' if row['met'] else 'missed'}" if "bar" in row else ""


def format_mib(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def format_items_per_second(microseconds: float) -> str:
    """Return items per second."""
    rate = 1e6 / microseconds
    return f"{rate:,.0f}" if rate > 10 else f"{rate:.2g}"


def format_threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def describe_pair(row: Record) -> str:
    """Return what a pair measures, and its number of threads."""
    return f"{row['what']}; {format_threads(row['threads'])}"


def describe_machine(record: Record) -> str:
    """Return the machine, threads and versions of a record."""
    versions = record["versions"]
    numbers = sorted({row["threads"] for row in record["pairs"].values() if "threads" in row})
    threads = " or ".join(map(format_threads, numbers))
    machine = f"{record['machine']}, {threads}"
    return f"{machine}, torch {versions['torch']}, Python {versions['python']}"


def list_versions(record: Record) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"Versions: {packages}."


def trial_warning(record: Record) -> str:
    """Return a warning if the benchmark was not run at its full length."""
    if record["share"] == 1 and record["data"] == "mnist":
        return ""
    return (
        f"**A trial, not a measurement: {record['share']:g} of the steps, data: {record['data']}.**"
    )


# --- docs/speed.md --------------------------------------------------------------------------------


def speed_table(cpu: Record, gpu: Record) -> str:
    """Return the pairs that have a bar, and the fastest mode of each network on the GPU."""
    if not cpu.get("pairs"):
        return "Not measured yet: `python scripts/benchmarks/run.py`."
    with_bar = [
        row
        for kind in ("loop", "package", "sampling")
        for row in measured_pairs_of_kind(cpu, kind)
        if "bar" in row
    ]
    rows = [
        (describe_pair(row), row["against"], format_ratio(row), format_allowed_ratio(row))
        for row in with_bar
    ]
    head = ("what", "compared with", "genlab's time over the other's", "bar")
    lines = [markdown_table(head, rows), "", *fastest_modes(gpu)]
    if warning := trial_warning(cpu):
        lines += [warning, ""]
    source = f"`{cpu['command']}` ({describe_machine(cpu)})"
    lines.append(f"Medians over turns in one run, with quartiles: {source}.")
    lines.append("All numbers: [docs/benchmarks](benchmarks/README.md).")
    return "\n".join(lines)


def fastest_modes(gpu: Record) -> list[str]:
    """Return the table of the fastest mode of each network on the GPU, if it was measured."""
    rows = [row for row in gpu.get("rows", {}).values() if "skipped" not in row]
    fastest = {row["case"]: row for row in sorted(rows, key=lambda row: row["genlab_items_s"])}
    if not fastest:
        return []
    cells = [
        (
            row["what"],
            row["mode"],
            f"{row['genlab_items_s']:,.0f}",
            f"{row['median_ratio']:.2f}",
            f"{row['share_of_peak']:.1%}",
        )
        for row in fastest.values()
    ]
    head = (
        f"on one {gpu['device']}",
        "fastest mode",
        "items/s",
        "time over the plain loop's",
        "share of the peak",
    )
    return [markdown_table(head, cells), ""]


# --- docs/benchmarks/README.md --------------------------------------------------------------------


def benchmark_page(cpu: Record, gpu: Record) -> str:
    """Return docs/benchmarks/README.md."""
    parts = [
        "# Benchmarks",
        "",
        "Written by `scripts/report.py` from cpu.json and gpu.json; no number is typed by hand.",
    ]
    if cpu.get("pairs"):
        parts += cpu_section(cpu)
    if gpu.get("rows"):
        parts += gpu_section(gpu)
    return "\n".join(parts) + "\n"


def cpu_section(cpu: Record) -> list[str]:
    parts = [
        "",
        "## On a CPU",
        "",
        f"`{cpu['command']}` on {describe_machine(cpu)}. genlab's own training loop and the "
        "baseline take turns in one run; the first turn of each is not counted. A ratio is "
        "genlab's time over the baseline's: the median of all turns, and their quartiles.",
        "",
        list_versions(cpu),
    ]
    if warning := trial_warning(cpu):
        parts += ["", warning]
    parts += loop_section(cpu) + package_section(cpu) + sampling_section(cpu)
    skipped = [
        (row["what"], row["against"], row["skipped"])
        for row in cpu["pairs"].values()
        if "skipped" in row
    ]
    if skipped:
        head = ("what", "compared with", "why")
        parts += ["", "### Not measured", "", markdown_table(head, skipped)]
    if "start_up" in cpu:
        rows = [
            (f"`{command}`", f"{t['median']:.2f}", f"{t['least']:.2f}–{t['most']:.2f}")
            for command, t in cpu["start_up"].items()
        ]
        head = ("process", "median, s", "least–most, s")
        parts += ["", "### Start-up", "", markdown_table(head, rows)]
    if "memory" in cpu:
        rows = [
            (f"`{name}`" if " -c " in name else name, f"{mib:,.0f}")
            for name, mib in cpu["memory"].items()
        ]
        about = "A process that trains the same VAE on MNIST for the same number of steps."
        table = markdown_table(("process", "MiB"), rows)
        parts += ["", "### Peak memory", "", about, "", table]
    return parts


def times_ms(row: Record) -> tuple[str, str]:
    """Return the milliseconds per step of genlab and of the baseline."""
    return f"{row['genlab_us'] / 1e3:.2f}", f"{row['other_us'] / 1e3:.2f}"


def loop_section(cpu: Record) -> list[str]:
    rows = [
        (
            describe_pair(row),
            *times_ms(row),
            f"{row['overhead_us']:,.0f}",
            format_ratio(row),
            format_allowed_ratio(row),
            f"{row['turns']} × {row['block']}",
        )
        for row in measured_pairs_of_kind(cpu, "loop")
    ]
    head = (
        "what",
        "genlab, ms per step",
        "plain loop, ms",
        "difference, µs per step",
        "ratio",
        "bar",
        "turns × steps",
    )
    about = "A plain PyTorch loop with the same network, batch and optimizer, and nothing else."
    title = "### Compared with a plain PyTorch loop"
    return ["", title, "", about, "", markdown_table(head, rows)]


def package_section(cpu: Record) -> list[str]:
    rows = [
        (
            describe_pair(row),
            row["against"],
            *times_ms(row),
            format_ratio(row),
            format_allowed_ratio(row),
            f"{row['turns']} × {row['block']}",
            format_parameters(row),
        )
        for row in measured_pairs_of_kind(cpu, "package")
    ]
    head = (
        "what",
        "compared with",
        "genlab, ms per step",
        "other, ms",
        "ratio",
        "bar",
        "turns × steps",
        "parameters",
    )
    about = "Parameters: genlab's / the other's, where they differ."
    title = "### Compared with other packages"
    return ["", title, "", about, "", markdown_table(head, rows)]


def format_parameters(row: Record) -> str:
    own = f"{row['parameters']:,}"
    return f"{own} / {row['other_parameters']:,}" if "other_parameters" in row else own


def sampling_section(cpu: Record) -> list[str]:
    rows = [
        (
            describe_pair(row),
            row["against"],
            format_items_per_second(row["genlab_us"]),
            format_items_per_second(row["other_us"]),
            format_ratio(row),
            format_allowed_ratio(row),
        )
        for row in measured_pairs_of_kind(cpu, "sampling")
    ]
    head = ("what", "compared with", "genlab, items/s", "other, items/s", "ratio of times", "bar")
    return ["", "### Sampling", "", markdown_table(head, rows)]


def gpu_section(gpu: Record) -> list[str]:
    parts = [
        "",
        f"## On one {gpu['device']}",
        "",
        f"`{gpu['command']}`: genlab's updates (`Trainer.train_step`) and a plain PyTorch loop "
        "with the same network in the same mode take turns. The data are random bytes on the "
        "device. FLOP are counted by torch.utils.flop_counter.",
        "",
        list_versions(gpu),
        "",
    ]
    if gpu["small"]:
        parts += ["**A trial with tiny networks, not a measurement.**", ""]
    peaks = [
        (name, f"{peak['tflops']:,.1f}", peak["source"], f"{peak['matmul_tflops']:,.1f}")
        for name, peak in gpu["peaks"].items()
    ]
    head = ("precision", "peak, TFLOP/s", "source", "a large matrix product, TFLOP/s")
    parts += [markdown_table(head, peaks), ""]
    head = (
        "what",
        "mode",
        "genlab, items/s",
        "plain loop, items/s",
        "ratio of times",
        "TFLOP/s",
        "share of the peak",
        "peak memory, MiB",
    )
    return [*parts, markdown_table(head, [gpu_cells(row) for row in gpu["rows"].values()])]


def gpu_cells(row: Record) -> tuple[str, ...]:
    if "skipped" in row:
        return row["what"], row["mode"], "not measured", row["skipped"], "", "", "", ""
    return (
        row["what"],
        row["mode"],
        f"{row['genlab_items_s']:,.0f}",
        f"{row['other_items_s']:,.0f}",
        f"{row['median_ratio']:.3f}",
        f"{row['tflops']:,.1f}",
        f"{row['share_of_peak']:.1%}",
        f"{format_mib(row['memory_mib'])} / {format_mib(row['other_memory_mib'])}",
    )
