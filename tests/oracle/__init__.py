"""The meaning of a value, told a second time: slow, plain, and sharing no code with the package under test."""
