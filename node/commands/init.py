"""``nodestr init``: from a model server to a configuration that works."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.common import EXIT_FAILED, Failure, exit_codes
from node.commands.new_password import NewPassword

if TYPE_CHECKING:
    from node.core.plans import Listed
    from node.ops.probes import Finding
    from node.ops.setup import Answers, Sale
    from node.upstream.dialects import DialectName

_LISTED = 20
"""Models shown of what the server has."""
_TRIES = 5
"""How often one question is asked again."""
_MINT = "https://mint.minibits.cash/Bitcoin"
_UPSTREAM = "http://127.0.0.1:11434/v1"
_EXAMPLES = {"--mint": _MINT, "--upstream": _UPSTREAM}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Make the configuration and the key of a new node.",
        epilog="""\b
Examples:
  nodestr init
  nodestr init --upstream http://127.0.0.1:11434/v1 --model llama3.2,100,300 \\
               --mint https://mint.minibits.cash/Bitcoin --no-public-url --yes
  nodestr init --upstream https://openrouter.ai/api/v1 --upstream-key-env OPENROUTER_API_KEY \\
               --model meta-llama/llama-3.3-70b-instruct --markup 10 --mint URL \\
               --lightning-address me@getalby.com --out /etc/nodestr/node.toml --json
""",
    )(init)


def init(
    upstream: Annotated[
        str, typer.Option(metavar="URL", help="The model server, /v1 included.")
    ] = "",
    upstream_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds its API key.")
    ] = "",
    dialect: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Kind of server, as upstreams.dialect; guessed from the URL."
        ),
    ] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID[,IN,OUT]",
            help="A model to sell and its prices of a million prompt and generated tokens, in sat "
            "(or 5000msat, 0.60usd, or 'ID,free'). Without prices: those that the server lists. "
            "Repeat for more; without any: all that are listed with a price.",
        ),
    ] = None,
    markup: Annotated[
        str, typer.Option(metavar="PERCENT", help="Added to prices that the server lists.")
    ] = "0",
    mint: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A mint whose tokens are accepted; repeat for more."),
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A relay; repeat for more. By default four large ones."),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="https URL under which clients reach the node."),
    ] = None,
    no_public_url: Annotated[
        bool, typer.Option("--no-public-url", help="None: reachable over Nostr only.")
    ] = False,
    lightning_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where earnings are paid to.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port to listen on.")] = 8080,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of the database; by default data/ beside FILE."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The configuration; the key goes beside it, as node.key."
        ),
    ] = Path("node.toml"),
    admin_password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the password of /admin from the first line of FILE (-: standard input); "
            "otherwise one is made and shown once.",
        ),
    ] = None,
    no_admin: Annotated[
        bool, typer.Option("--no-admin", help="No pages for the operator at /admin.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=300.0, help="Deadline of each check.")
    ] = 10.0,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Write the answers without asking anybody.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults for the rest.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Ask nothing and print one JSON object.")
    ] = False,
) -> None:
    """Ask what a node needs, check every answer live, make its key, write its configuration.

    What options say is not asked. Nothing is ever overwritten: a key that is there is used, a
    configuration that is there ends the command. Nothing is written unless every check passes
    (or --no-check). Exit code 1: a check failed; each says how to mend it.
    """
    if public_url and no_public_url:
        raise typer.BadParameter("--public-url and --no-public-url exclude each other")
    if no_admin and admin_password_file is not None:
        raise typer.BadParameter("--no-admin and --admin-password-file exclude each other")
    with exit_codes():
        from node.ops import logging
        from node.ops.setup import SetupError

        logging.configure("error", "console")
        out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link
        if out.exists():
            raise Failure(f"{out} exists and is not overwritten: name another file with --out")
        if not out.parent.is_dir():
            raise Failure(f"{out.parent} does not exist: make it first (mode 0700)")
        talk = _Talk(quiet=yes or as_json, check=not no_check, timeout_s=timeout)
        try:
            answers, listed = talk.answers(
                upstream=upstream,
                key_env=upstream_key_env,
                dialect=dialect,
                models=model or [],
                markup=markup,
                mints=mint or [],
                relays=relay or [],
                public_url="" if no_public_url else public_url,
                lightning_address=lightning_address,
                port=port,
                data_dir=Path(os.path.abspath(data_dir or out.parent / "data")),  # noqa: PTH100
            )
            admin = (
                None if no_admin else NewPassword(out.with_name("admin.hash"), admin_password_file)
            )
            _finish(answers, listed, out, talk, admin, as_json=as_json)
        except SetupError as error:
            raise Failure(str(error)) from None


class _Talk:
    """The questions. With ``quiet`` none is asked."""

    def __init__(self, *, quiet: bool, check: bool, timeout_s: float) -> None:
        self.quiet, self.check, self.timeout_s = quiet, check, timeout_s

    def ask(self, text: str, *, default: str | None, option: str) -> str:
        """One answer. In quiet the default; Failure without one."""
        if self.quiet:
            if default is None:
                raise Failure(f"{option} is missing; for example {option} {_EXAMPLES[option]}")
            return default
        return str(typer.prompt(text, default=default, err=True)).strip()

    def until_right(
        self, question: Callable[[], str], check: Callable[[str], Finding | None]
    ) -> str:
        """Ask until the check passes, or it is to be kept all the same."""
        for _ in range(_TRIES):
            answer = question()
            finding = check(answer)
            if finding is None or finding.level != "fail":
                return answer
            typer.echo(f"  {finding.what}\n  -> {finding.remedy}", err=True)
        raise Failure("no answer could be used; nothing was written")

    def answers(
        self,
        *,
        upstream: str,
        key_env: str,
        dialect: str,
        models: list[str],
        markup: str,
        mints: list[str],
        relays: list[str],
        public_url: str | None,
        lightning_address: str | None,
        port: int,
        data_dir: Path,
    ) -> tuple[Answers, list[Listed]]:
        """All answers, and what the model server lists."""
        from node.ops.setup import Answers, guess_dialect, list_upstream, parse_sale
        from node.settings_sections import DEFAULT_RELAYS

        sales = [parse_sale(text) for text in models]
        if not upstream:
            upstream = self.ask(
                "Model server, with /v1", default=_quiet(self, _UPSTREAM),
                option="--upstream",
            )  # fmt: skip
            if not key_env and not self.quiet:
                key_env = self.ask(
                    "Environment variable with its API key (empty: none)", default="", option=""
                )
        kind = _dialect(dialect) if dialect else guess_dialect(upstream)
        listed: list[Listed] = []
        if self.check and (not sales or not self.quiet):
            finding, listed = asyncio.run(list_upstream(upstream, kind, key_env, self.timeout_s))
            if finding.level == "fail":
                raise Failure(f"the model server {finding.what}; {finding.remedy}")
        if not sales:
            sales = self._sales(listed)
        if not mints:
            mints = [self.ask("Mint", default=_quiet(self, _MINT), option="--mint")]
        if public_url is None:
            public_url = self.ask(
                "Public https URL without /v1 (empty: reachable over Nostr only)",
                default="",
                option="",
            )
        if lightning_address is None:
            lightning_address = self.ask(
                "Lightning address for what it earns (empty: later)", default="", option=""
            )
        answers = Answers(
            upstream=upstream,
            dialect=kind,
            key_env=key_env,
            models=tuple(sales),
            markup_percent=markup,
            mints=tuple(mints),
            relays=tuple(relays) or DEFAULT_RELAYS,
            public_url=public_url,
            lightning_address=lightning_address,
            data_dir=data_dir,
            port=port,
        )
        return answers, listed

    def _sales(self, listed: list[Listed]) -> list[Sale]:
        """What to sell of what is listed; nothing means: everything at listed prices."""
        from node.ops.setup import SetupError, parse_sale

        if any(model.tariff is not None for model in listed):
            return []
        names = [model.id for model in listed]
        shown = ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")
        if self.quiet or not names:
            has = f"; the server has {shown}" if names else ""
            raise Failure(f"--model is missing: name what to sell, as ID,IN,OUT (sat){has}")
        typer.echo(f"It has: {shown}", err=True)

        def wrong(text: str) -> Finding | None:
            from node.ops.probes import Finding

            try:
                sale = parse_sale(text)
            except SetupError as error:
                return Finding("model", "fail", str(error), "try again")
            if not sale.prices:
                return Finding("model", "fail", "has no price", "write ID,IN,OUT or ID,free")
            if sale.id not in names:
                return Finding("model", "fail", "is not there", f"choose one of: {shown}")
            return None

        suggestion = f"{names[0]},100,300"
        question = "Model and its prices per million tokens in sat (ID,IN,OUT)"
        chosen = self.until_right(
            lambda: self.ask(question, default=suggestion, option="--model"), wrong
        )
        return [parse_sale(chosen)]


def _quiet(talk: _Talk, default: str) -> str | None:
    """What is suggested to a person is not assumed of a script."""
    return None if talk.quiet else default


def _dialect(name: str) -> DialectName:
    from typing import get_args

    from node.ops.setup import SetupError
    from node.upstream.dialects import DialectName

    if name not in get_args(DialectName):
        raise SetupError(f"--dialect {name}: choose one of {', '.join(get_args(DialectName))}")
    return name  # type: ignore[return-value]


def _finish(
    answers: Answers,
    listed: list[Listed],
    out: Path,
    talk: _Talk,
    admin: NewPassword | None,
    *,
    as_json: bool,
) -> None:
    """Check, then write key and configuration; say what was done."""
    from discovery.nostr.keys import Keys
    from node.ops.setup import check_answers, list_upstream, make_key, render, write_config

    findings: list[Finding] = []
    if talk.check:
        if not as_json:
            typer.echo("checking …", err=True)
        findings = asyncio.run(check_answers(answers, Keys.generate(), talk.timeout_s))
        if not listed:
            _, listed = asyncio.run(
                list_upstream(answers.upstream, answers.dialect, answers.key_env, talk.timeout_s)
            )
    wrong = any(finding.level == "fail" for finding in findings)
    if not as_json:
        from node.commands.doctor import show

        show(findings) if findings else typer.echo("nobody was asked (--no-check)")
    key_file = out.with_name("node.key")
    document: dict[str, object] = {"ok": not wrong, "checks": [f.document() for f in findings]}
    if not wrong:
        text = render(answers, key_file, listed, admin.file if admin else None)
        keys, made = make_key(key_file)
        try:
            if admin is not None:
                admin.write()
            write_config(out, text)
        except BaseException:
            if made:
                key_file.unlink()
            if admin is not None:
                admin.take_back()
            raise
        document |= {
            "config": str(out),
            "key": str(key_file),
            "key_made": made,
            "npub": keys.npub,
            "admin_password": admin.made if admin else None,
            "admin_page": f"http://127.0.0.1:{answers.port}/admin" if admin else None,
            "next": [f"nodestr serve --config {out}", f"nodestr doctor --config {out}"],
        }
        if not as_json:
            typer.echo(f"wrote    {out}")
            typer.echo(f"{'wrote' if made else 'uses':<8} {key_file}: keep a copy of it")
            typer.echo(f"npub     {keys.npub}")
            if admin is not None:
                typer.echo(f"admin    http://127.0.0.1:{answers.port}/admin")
                typer.echo(
                    f"password {admin.made}   (shown this once; keep it)"
                    if admin.made
                    else f"password the one of {admin.file}"
                )
            typer.echo(f"next     nodestr serve --config {out}")
            typer.echo(f"         nodestr doctor --config {out}")
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    if wrong:
        if not as_json:
            typer.echo("nothing was written: mend what is broken, or use --no-check", err=True)
        raise typer.Exit(EXIT_FAILED)
