"""The stages of tools/bench/accelerator.py: a module each, which lists its measurements: `probes(dry, out, until)`."""
