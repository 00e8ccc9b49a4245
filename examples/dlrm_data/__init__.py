"""The data sets that `dlrm.py` trains on. Each is a `Dataset`: see `samples.py`."""
