"""Which radiographs are in which part and set: groups, held-out sets, and their assignment."""
