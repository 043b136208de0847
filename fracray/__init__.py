"""fracray."""
