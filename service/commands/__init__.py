"""The commands of ``superdiff``, one file each; light to import, so that none waits for what another one needs."""
