"""Between sockets and roles: one poll loop per role, or per crowd of imitated devices; never a blocking send."""
