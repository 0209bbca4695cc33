"""What a service embeds.

- `stylizer`: the entrance; `painting`: one job, step by step; `result`: what it gives; `evaluate`: losses alone
- `presets`: what a recipe is; `recipes`: those that come with Impasto
- `loop`: a solver of `solvers` descends an evaluator of `plans`, which a backend of `backends` made for a `problem`
- `targets`: what pictures measure; `images`, `read_image`, `write_image`, `files`: pictures in and out
- `limits`: what a job may ask for; `verify`, `activations`: exported graphs against the torch reference
"""
