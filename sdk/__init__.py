"""What an application author uses. Everything public is also a name of `myna` itself."""
