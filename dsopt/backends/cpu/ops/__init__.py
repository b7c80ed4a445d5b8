"""The converters, a family of operators in each file."""
