"""Training with Lightning: the module, its optimizer and schedule, sharding, checkpoints, telemetry, and the commands fit, validate, test, predict."""
