"""Storage: runs, histories and what comes from outside, as rows in SQL."""
