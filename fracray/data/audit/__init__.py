"""The audit of a data set: findings, verdicts, and the page that shows them."""
