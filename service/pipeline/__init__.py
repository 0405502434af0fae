"""The two paths of data: `pack` turns streams of sources into an archive, `unpack` an archive into streams again."""
