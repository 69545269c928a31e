"""One module per command of `trine`, each imported only when its command is called."""
