"""Reading the tensors of a checkpoint one at a time, without building the model."""
