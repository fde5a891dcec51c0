"""The command line: thin commands, one file each; nothing here starts jax before a command runs."""
