"""An experiment: every choice of a run, in one frozen tree."""
