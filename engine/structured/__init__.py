"""What an output must look like, and how no token is drawn that would break it.

Law: the model draws, the grammar only forbids; a text that ends by itself is whole, and one that is cut says so.
"""
