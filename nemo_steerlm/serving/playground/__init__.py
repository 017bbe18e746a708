"""The page: a Gradio app over the same service as the API, built when a browser first asks for it."""
