"""The page: static files over the server's own API, and the cookie that stands for its token in a browser."""
