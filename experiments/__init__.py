"""The evidence: a registry of runs, one command that runs what is missing, and what their results say."""
