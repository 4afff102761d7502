"""What a person reads of a run: an HTML page, comparisons, plots. Start with page.py."""
