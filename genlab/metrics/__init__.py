"""Metrics: numbers about a model or its samples, each with its error and its conditions."""
