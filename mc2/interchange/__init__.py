"""Models in and out: the model folder that `mc2.load` reads, and checkpoints of training."""
