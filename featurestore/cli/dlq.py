"""`dlq list`, `dlq show`, `dlq replay`: events that could not be taken, and their way back."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.environment import load
from featurestore.cli.output import FormOption, Output, print_table, say, shown, talk_console
from featurestore.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_BYTES = 4096
"""Of a key or value; `--raw` writes all."""

SourceArgument = Annotated[str, typer.Argument(help="A published source, as departures.")]

_WHY = {
    "too_large": "larger than the topic takes (max.message.bytes)",
    "no_partition": "the topic has no such partition any more",
}
_TAKEN = "only a view refused it: the event is in the lake and in other views, and a copy would be counted there"


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Dead letters: what there are, and why.")
    group.command("list")(list_letters)
    group.command("show")(show)
    group.command("replay")(replay)
    app.add_typer(group, name="dlq")


def list_letters(
    context: typer.Context,
    source: SourceArgument,
    reason: Annotated[str, typer.Option(help="Only letters with this reason, as future_event.")] = "",
    limit: Annotated[int, typer.Option(min=0, max=1000, help="How many of the newest are shown.")] = 20,
    output: FormOption = None,
) -> None:
    """Counts a source's dead letters by reason, and shows the newest.

    The dead-letter topic is read once, to where it ends now.
    """
    document = _ask("reading", "list", source, "--limit", str(limit), "--reason", reason)
    if not document["letters"]:
        say(f"no dead letters in {document['dlq']}{f' with the reason {reason}' if reason else ''}")
    if document["foreign"]:
        say(f"{document['foreign']:,} records of {document['dlq']} are no dead letters of {document['topic']}")
    Output(context, output).show(document, lambda out: _draw_list(out, document))


def show(
    context: typer.Context,
    source: SourceArgument,
    partition: Annotated[int, typer.Argument(min=0, help="Of the source's topic.")],
    offset: Annotated[int, typer.Argument(min=0, help="Of the source's topic.")],
    raw: Annotated[Path | None, typer.Option(metavar="FILE", help="A new file for the value's exact bytes.")] = None,
    output: FormOption = None,
) -> None:
    """Shows everything of one dead letter."""
    document = _ask("looking", "show", source, str(partition), str(offset))
    document |= document.pop("letter")
    key, value = _bytes(document["key"]), _bytes(document["value"])
    headers = [{"name": name, "value": _content(_bytes(content))} for name, content in document["headers"]]
    document |= {"headers": headers, "key": _content(key), "value": _content(value)}
    if raw is not None:
        _write_new(raw, value)
    Output(context, output).show(document, lambda out: _draw_letter(out, document))
    if raw is not None and value is not None:
        say(f"{len(value):,} bytes in {raw}")


def replay(  # noqa: PLR0913, PLR0917 — the words of the verb
    context: typer.Context,
    source: SourceArgument,
    reason: Annotated[str, typer.Option(help="Letters with this reason.")] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Letters of this partition of the topic.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="With --partition: this letter.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All letters.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be sent, and send nothing.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Go on where another process ended, without the minute's wait.")
    ] = False,
    output: FormOption = None,
) -> None:
    """Sends dead letters to the source's topic again, each at most once.

    What an earlier run sent is left out, also where that run was killed. A letter that still breaks the contract
    becomes a new one, at its new offset.
    """
    some = bool(reason) or partition is not None
    if offset is not None and partition is None:
        raise UsageError("--offset needs --partition", hint="offsets are those of a partition", field="offset")
    if some == every:
        raise UsageError("--all excludes the other choices" if every else "which letters?", field="all",
                         hint="say --reason REASON, --partition P --offset O, or --all")  # fmt: skip
    words = ["--reason", reason]
    words += [] if partition is None else ["--partition", str(partition)]
    words += [] if offset is None else ["--offset", str(offset)]
    words += ["--dry-run"] * dry_run + ["--take-over"] * take_over
    document = _ask("replaying", "replay", source, *words)
    Output(context, output).show(document, lambda out: _draw_replay(out, document))


def _ask(doing: str, verb: str, source: str, *words: str) -> dict[str, Any]:
    """The last document of the other process, with progress on a terminal until then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from featurestore.cli.streamed import stream_lines

    settings = load("kafka")
    environment = {**os.environ, "FS_KAFKA": settings.kafka, "FS_LAKE": settings.lake}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    answer: dict[str, Any] = {}
    with Progress(*columns, console=talk_console(), transient=True) as progress:
        task = progress.add_task(doing, total=None)
        for said in stream_lines("dlq", verb, source, *words, environment=environment):
            if "read" in said:
                progress.update(task, completed=said["read"], total=said["records"])
            if "sent" in said:
                progress.update(task, description=f"{doing}, {said['sent']:,} sent")
            answer = said
    answer.pop("done")
    return answer


def _bytes(encoded: str | None) -> bytes | None:
    return None if encoded is None else base64.b64decode(encoded)


def _content(data: bytes | None) -> dict[str, Any] | None:
    """Bytes for people: text where it can be printed, else hexadecimal digits, and not more than somebody reads."""
    if data is None:
        return None
    text = _text(data)
    content = {"hex": data[:SHOWN_BYTES].hex(" ")} if text is None else {"text": text}
    return {"bytes": len(data), **content, "truncated": len(data) > SHOWN_BYTES}


def _text(data: bytes) -> str | None:
    """The beginning, None where it is no text or would be obeyed by a terminal."""
    start = data[:SHOWN_BYTES]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        # Our own cut may have gone through a character.
        if len(data) == len(start) or error.start < SHOWN_BYTES - 3:
            return None
        text = start[: error.start].decode()
    return text if all(c.isprintable() or c in "\t\r\n" for c in text) else None


def _write_new(path: Path, value: bytes | None) -> None:
    if value is None:
        raise UsageError("the letter is a tombstone: it has no value to write", field="raw")
    try:
        with path.open("xb") as file:
            file.write(value)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="name a new file", field="raw") from None


def _plain(text: str) -> str:
    """On one line, with nothing in it that a terminal would obey: whoever wrote the event chose some of it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _draw_list(out: Console, document: Mapping[str, Any]) -> None:
    if not document["letters"]:
        return
    rows = [(_plain(r["reason"]), r["count"], r["replayed"], r["newest"]) for r in document["reasons"]]
    print_table(out, ("reason", ">letters", ">replayed", "newest"), rows, title=f"dead letters of {document['topic']}")
    newest = [
        (e["partition"], str(e["offset"]), _plain(e["reason"]), e["at"], e["bytes"], "yes" if e["replayed"] else "no",
         _plain(e["error"]))
        for e in document["newest"]
    ]  # fmt: skip
    columns = (">partition", ">offset", "reason", "at", ">bytes", "replayed", "error")
    if newest:
        print_table(out, columns, newest, title=f"the newest {len(newest):,}")


def _draw_letter(out: Console, document: Mapping[str, Any]) -> None:
    names = ("partition", "offset", "reason", "error", "contract", "revision", "at", "replayed")
    rows = [(name, _plain(str(document[name]))) for name in names]
    if document["encoded"]:
        rows.append(("encoded", f"{_plain(document['encoded'])}: the event encoded anew, not the original bytes"))
    rows += [("key", _drawn(document["key"], "null"))]
    rows += [(f"header {_plain(h['name'])}", _drawn(h["value"], "null")) for h in document["headers"]]
    print_table(out, ("", ""), rows)
    out.print(f"value, {_drawn(document['value'], 'null (a tombstone)')}", markup=False, soft_wrap=True)


def _drawn(content: Mapping[str, Any] | None, null: str) -> str:
    if content is None:
        return null
    more = f" … the first {SHOWN_BYTES:,} of them" if content["truncated"] else ""
    return f"{shown(content['bytes'])} bytes{more}: {content.get('text', content.get('hex'))}"


def _draw_replay(out: Console, document: Mapping[str, Any]) -> None:
    would = "would be sent" if document["dry_run"] else "sent"
    if not document["selected"]:
        out.print("no dead letters are selected")
    out.print(f"{document['sent']:,} {would} to {document['topic']}, {document['already_replayed']:,} replayed before")
    if document["recovered"]:
        done = "would be completed first" if document["dry_run"] else "sent now"
        out.print(f"{document['recovered']:,} of an earlier replay that did not finish: {done}")
    if document["lost"]:
        out.print(f"{document['lost']:,} of that are no longer in {document['dlq']}: they cannot be sent")
    for why, count in document["skipped"].items():
        out.print(f"{count:,} skipped, {why}: {_WHY.get(why, _TAKEN)}", soft_wrap=True)
