"""From a recipe to a snapshot: resolve, plan, the Prefect flow, publishing, the report, the command line."""
