"""A run in MLflow or TensorBoard: what is written of it, the writers, and a thread that writes while a command runs."""
