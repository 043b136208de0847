"""What a checkpoint is worth: inference, scores with intervals, robustness to corruptions."""
