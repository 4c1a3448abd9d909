"""The small trained pipelines that ship with the product, and the recipe that trained them."""
