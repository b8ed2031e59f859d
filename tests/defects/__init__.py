"""Small re-creations of defects, each of which at least one law must catch; `index` lists them."""
