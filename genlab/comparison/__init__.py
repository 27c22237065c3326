"""Runs side by side: their records as a table, as text, as charts and as an HTML page."""
