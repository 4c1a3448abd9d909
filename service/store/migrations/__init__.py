"""The steps by which a database comes to the tables of :mod:`service.store.schema`; applied as a store is opened."""
