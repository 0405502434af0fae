"""THE FORMAT of an archive, pure: bytes in, values out, no I/O and no clock. The text is docs/ARCHIVE_FORMAT.md.

zip64   the ZIP container: local headers, directory, end records
names   names of archives and of the entries in them
parts   the JSON parts: header, key slots, manifest, footer
chunk   the body of a chunk: one zstd frame
"""
