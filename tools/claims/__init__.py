"""Claims of the report "Video generation models as world simulators" (OpenAI, 2024), each measured by one command.

    python -m tools.claims.run compute runs/claims   # quality grows with compute, whatever the model and the patches
    python -m tools.claims.run sizes runs/claims       # native sizes frame better; spacetime patches serve every size
    python -m tools.claims.run physics runs/claims   # motion is learned with size and data, in and out of distribution

That detailed captions help is `python -m tools.recaption_claim`. Models are as small as experiments/recaption.py, which
all of them share. A seed of `compute` with --steps 600 took 2,090 seconds of CPU, one of `sizes` 1,260. What is
finished is not made again. Each command writes results.json, table.md and plot.png to OUT/CLAIM; docs/claims.md has
what came out. Intervals are 95% bootstrap intervals over seeds and videos together.
"""
