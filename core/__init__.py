"""The ground floor: contracts, formats and settings that every room shares; imports nothing of ours."""
