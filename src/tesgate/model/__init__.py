"""What we think about tasks: pure, without I/O and without a clock."""
