"""One module for each source of pictures: `locate(data)` says where it is and how it is read."""
