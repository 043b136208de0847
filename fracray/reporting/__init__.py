"""A run or a checkpoint as one page: what was found, how far it can be trusted, and how to do it again."""
