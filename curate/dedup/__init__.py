"""Exact and near-duplicate detection: signatures, groups, components, leaders and the keep policy, all in numpy."""
