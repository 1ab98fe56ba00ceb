"""Draws the arrows between the rooms, schedules them on Dask, resumes them and reports on them."""
