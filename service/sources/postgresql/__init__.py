"""PostgreSQL as a source: parallel COPY on one exported snapshot a database, schema and large objects by pg_dump.

Correctness rests on pg_dump (everything that is not a table's rows), speed on COPY. Restored databases are built
beside the live ones and renamed into place in one transaction.
"""

from service.sources.postgresql.dump import PostgresqlSource
from service.sources.postgresql.restore import PostgresqlRestorer

__all__ = ["PostgresqlRestorer", "PostgresqlSource"]
