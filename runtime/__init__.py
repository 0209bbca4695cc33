"""What a service embeds: backends, plans, solvers, the loop, pictures, presets and jobs."""
