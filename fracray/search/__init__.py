"""The search: space, study, trials, their table, and what was found."""
