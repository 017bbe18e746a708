"""``report.html``: one self-contained file with the tables, plots and sample answers of a finished pipeline."""
