"""What is in a data set and what is wrong with it: facts, verdicts, and the page that shows them."""
