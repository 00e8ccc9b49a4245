"""What the options of ``damo-torchrec serve`` say to the server."""

import argparse
import os

from damo_torchrec.cli.output import note
from damo_torchrec.options import parse_bytes
from damo_torchrec.server.gate import LOCAL_HOSTS, Access
from damo_torchrec.server.json_bodies import Limits
from damo_torchrec.server.served_model import Settings

TOKEN = "DAMO_SERVE_TOKEN"
_EVERYWHERE = ("", "0.0.0.0", "::")  # no names by which anybody asks, but a browser that is made to


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings. Raises ValueError or OSError for those that cannot be."""
    return Settings(
        checkpoint=options.export,
        memory_budget=options.memory_budget,
        num_threads=options.threads,
        watch=options.watch,
        batch_samples=options.batch_samples,
        batch_seconds=options.batch_ms / 1000,
        workers=options.workers,
        join=options.join,
        limits=limits_of(options),
        access=access_of(options),
    )


def access_of(options: argparse.Namespace) -> Access:
    """Who may ask. Raises ValueError for a token that is given twice or too short, OSError for a file that is not."""
    token = os.environ.get(TOKEN)
    if options.token_file is not None:
        if token is not None:
            raise ValueError(f"either --token-file or {TOKEN}, got both")
        token = options.token_file.read_text().strip()
    names = list(options.allow_host)
    if options.host not in _EVERYWHERE:
        names.append(f"[{options.host}]" if ":" in options.host else options.host)
    elif not names:
        text = "asked by another name than localhost the server will refuse: --allow-host says what it is called"
        note(options, text)
    return Access(LOCAL_HOSTS.union(name.lower() for name in names), frozenset(options.allow_origin), token)


def limits_of(options: argparse.Namespace) -> Limits:
    """What requests may hold. Raises ValueError for limits that contradict each other."""
    limits = Limits(
        body_bytes=parse_bytes(options.max_body),
        values=options.max_values,
        samples=options.max_samples,
        ids=options.max_ids,
        bytes_together=parse_bytes(options.max_bodies),
    )
    if limits.bytes_together < limits.body_bytes:
        raise ValueError(f"--max-bodies {options.max_bodies} is less than --max-body {options.max_body}")
    return limits
