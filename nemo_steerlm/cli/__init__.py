"""The command ``steerlm``: one file a command, each imported only when it is called."""
