"""Documents as files, as stored text, and as chunks. Import from the module that owns the thing."""
