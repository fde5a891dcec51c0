"""What a run will need and how fast it can be: its programs compiled for a TPU pod on a machine without one."""
