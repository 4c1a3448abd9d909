"""HTTP and jobs: how requests reach the science in :mod:`pipelines`, and how its answers leave."""
