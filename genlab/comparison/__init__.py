"""Runs side by side: their records (`entries`), aligned (`table`), as text, as pictures (`charts`) and as one page."""
