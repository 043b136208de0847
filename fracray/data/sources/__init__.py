"""Where radiographs and their labels come from: FracAtlas, folders, archives, tables, downloads."""
