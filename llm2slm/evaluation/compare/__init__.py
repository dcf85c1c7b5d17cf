"""Systems compared on the same rows: intervals, paired tests, the rows that differ most, one page."""
