"""`python -m vdit.plan OUT`: the process that vdit.plan.plan.plan starts. Not for users: see `vdit plan --help`."""

import sys

from vdit.plan.plan import compile_request

if __name__ == "__main__":
    compile_request(sys.argv[1])
