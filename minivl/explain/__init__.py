"""What models have learned, in numbers: pure functions on tensors."""
