//! The reference page, generated from the table of keys.

use std::fmt::Write as _;

use crate::schema::{Key, Section};
use crate::settings::SECTIONS;

/// Writes the reference page `docs/configuration.md` in Markdown.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(HEAD);
    for section in SECTIONS {
        write_section(&mut out, section);
    }
    out
}

fn write_section(out: &mut String, section: &Section) {
    let heading = if section.path.is_empty() { "General" } else { section.path };
    let heading = if section.path.is_empty() { heading.to_owned() } else { format!("`{heading}`") };
    let _ = write!(
        out,
        "\n## {heading}\n\n{}\n\n| key | type | default | range | change | meaning |\n|---|---|---|---|---|---|\n",
        section.doc.trim()
    );
    for key in (section.keys)() {
        write_row(out, &key);
    }
}

fn write_row(out: &mut String, key: &Key) {
    let default = match key.default_text() {
        "" => "–".to_owned(),
        text if key.path == "node_id" => text.to_owned(),
        text => format!("`{text}`"),
    };
    let range = key.range.map_or_else(|| "–".to_owned(), |(least, most)| format!("`{least}` … `{most}`"));
    let _ = writeln!(
        out,
        "| `{}` | {} | {default} | {range} | {} | {} |",
        key.path,
        key.kind(),
        key.reload,
        key.doc.split_whitespace().collect::<Vec<_>>().join(" "),
    );
}

const HEAD: &str = "\
<!-- Generated from the table of keys in wsc-config. Do not edit by hand; to write it anew:
     UPDATE_DOCS=1 cargo test -p wsc-config --test reference -->

# Configuration reference

`wsc default-config` prints a complete, commented file; `wsc check-config FILE` checks one and names
everything that is wrong with it.

## Where settings come from

Later layers win over earlier ones:

1. the defaults below,
2. the section `wsc` of one file in YAML, TOML or JSON (told by the end of its name),
3. the profile chosen with `--profile NAME`,
4. the environment.

Without `--config`, `./wsc.yaml` is read where there is one; else the hub runs on the defaults.

```yaml
wsc:
  listen: 127.0.0.1:8080
  queue:
    policy: drop_oldest

prod:            # a profile: a map whose only key is `wsc`, laid over the section above
  wsc:
    max_connections: 500000
```

Sections and maps of a profile are merged key by key; lists and single values are replaced as a whole.
At the top level of the server's file stand `wsc` and profiles, anything else is an error. A program
that embeds the hub may keep sections of its own there.

Each key has an environment variable: `WSC__`, then the path in upper case with `__` between its parts.
`queue.policy` is `WSC__QUEUE__POLICY`. Lists are comma separated (`WSC__TRUSTED_PROXIES=10.0.0.0/8,192.168.1.7`),
maps are `name=value,name=value`, an empty value stands for \"not set\". A `WSC__…` variable that is no key is an error.

## How values are written

- **Durations** are text with a unit: `100ms`, `10s`, `5m`, `24h`, `7d`. A bare number is an error.
- **Sizes** are text, `64KiB`, `1MiB`, `4GiB` (by 1024) or `10MB` (by 1000), or a number of bytes.
- **Text** that looks like a number or like `true` needs quotes in a file; in the environment it does not.
- **Secrets** never appear in logs, errors or dumps. Where running values are shown, stars and a fingerprint of eight
  hexadecimal digits stand in their place, by which two nodes can be compared. A secret of less than 16 bytes shows two
  digits only, since eight would help to guess it.

*Change* says when a new value takes effect: **live** as soon as the file is reloaded, **restart** at the
next start.

## Reloading

The hub follows the file that it was started with, and the key and certificate files that it names: edits in place,
files that are renamed over them, symlinks that are switched over as in directories that Kubernetes mounts. Changes are
collected until there was none for 200 ms, for 2 s at most. Where the system cannot notify (its limits, a network file
system), contents are compared every 2 seconds, and the log says so. `SIGHUP` and `POST /api/admin/config/reload` do the
same at once; with `?dry_run` the answer says what a reload would change.

A file with a mistake in it is refused as a whole and leaves the running settings as they are. So is one that is empty
or holds comments only, which is most likely being written at this moment; who wants the defaults back writes `wsc: {}`.
The safe way to write settings is to write another file and to rename it. What the hub was started with on its command
line and in its environment stays in force: the environment still wins over the file.
";
