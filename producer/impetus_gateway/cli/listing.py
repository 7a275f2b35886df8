"""`impetus serve-key` and `impetus serve-webhook`: entries in the files that `impetus serve` reads."""

from __future__ import annotations

from pathlib import Path

import click

from ..listed import add_listed
from .extra import require_extra


@click.command("serve-key", short_help="Make a key for `impetus serve --keys`.")
@click.argument("name")
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The file that the key's hash is added to.",
)
@click.option(
    "--role",
    "roles",
    type=click.Choice(["submit", "read", "operate"]),
    multiple=True,
    default=("submit", "read"),
    show_default=True,
    help="submit: requests; read: its own jobs by their ids; operate: everybody's, metrics, the dashboard.",
)
def serve_key(name: str, keys_file: Path, roles: tuple[str, ...]) -> None:
    """Make a key called NAME, print it, and add its hash to FILE. Whoever has the key is NAME; FILE does not have it.

    \b
    Examples:
        impetus serve-key shop --keys keys.toml
        impetus serve-key me --keys keys.toml --role submit --role read --role operate
    """
    from ..entry.callers import Keys, Role, new_key

    key, entry = new_key(name, [Role(role) for role in roles])
    add_listed(keys_file, entry, Keys.read)
    click.echo(key)


@click.command("serve-webhook", short_help="Have `impetus serve --webhooks` tell a URL when a batch ends.")
@click.argument("url")
@click.option(
    "--webhooks",
    "webhooks_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The file that URL and its secret are added to.",
)
@click.option("--key", "keys", multiple=True, metavar="NAME", help="Only of batches of this key. [default: of all]")
@click.option(
    "--event",
    "events",
    type=click.Choice(["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]),
    multiple=True,
    help="Only of such an end. [default: of all four]",
)
def serve_webhook(url: str, webhooks_file: Path, keys: tuple[str, ...], events: tuple[str, ...]) -> None:
    """Make a secret, print it, and add it and URL to FILE. What comes to URL is signed with the secret, as Standard
    Webhooks say; `openai.webhooks.unwrap` and the libraries of standardwebhooks.com check that.

    \b
    Examples:
        impetus serve-webhook https://app.example/batches --webhooks webhooks.toml
        impetus serve-webhook https://shop.example/done --webhooks webhooks.toml --key shop --event batch.completed
    """
    require_extra()
    from ..webhooks import new_receiver, read_receivers

    secret, entry = new_receiver(url, keys, events)
    add_listed(webhooks_file, entry, read_receivers)
    click.echo(secret)
