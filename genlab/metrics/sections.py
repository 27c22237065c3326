"""The sections in which tables show the metrics, in their order."""

from __future__ import annotations

EFFICIENCY_METRIC = "efficiency"
SAMPLES_SECTION = "Samples against held-out data"
# Section -> its metrics; a metric that is not listed is one of samples.
SECTIONS = {
    "Likelihood": ("likelihood", "ode_likelihood", "vlb_terms"),
    SAMPLES_SECTION: (),
    "Fidelity and coverage": ("prdc", "sharpness"),
    "Modes and classes": (
        "mode_coverage",
        "class_coverage",
        "class_accuracy",
        "prompt_accuracy",
        "cas",
        "classification",
    ),
    "Memorization": ("nn_memorization",),
    "Forecasts": ("crps", "pinball", "interval_coverage", "forecast_likelihood"),
    "Tables": ("table_marginals", "table_correlations", "table_utility", "table_copying"),
    "Translation": ("paired_translation", "unpaired_translation", "pairs"),
    "Codes and reconstructions": (
        "reconstruction",
        "active_units",
        "disentanglement",
        "cluster_purity",
    ),
    "Cost": (EFFICIENCY_METRIC,),
}


def section_of_metric(metric: str) -> str:
    """Return the section in which a metric is shown."""
    return next((name for name, metrics in SECTIONS.items() if metric in metrics), SAMPLES_SECTION)
