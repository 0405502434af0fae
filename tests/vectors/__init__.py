"""Published examples of the format (docs/ARCHIVE_FORMAT.md, section 10) and what makes them."""
