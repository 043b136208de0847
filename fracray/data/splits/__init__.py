"""Groups that stay together, and the parts they are assigned to."""
