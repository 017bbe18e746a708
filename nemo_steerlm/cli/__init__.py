"""The command ``steerlm``: one file per command, imported when it is called."""
