"""The command `damo-torchrec`."""
