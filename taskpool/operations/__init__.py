"""What programs do with tasks: submit, read, list, wait, stop. Each operation is a plan that either store runs."""
