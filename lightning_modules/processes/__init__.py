"""Noising processes of diffusion models: schedules, forward process, posterior."""
