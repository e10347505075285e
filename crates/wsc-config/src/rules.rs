//! Rules for single values that a range cannot express, and the closed lists of names behind them.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use secrecy::ExposeSecret;
use url::Url;
use wsc_protocol::{EventType, FailureReason};

use crate::field::Wrong;
use crate::suggest::nearest;
use crate::values::{Secret, quoted};

/// Matches any error whose text contains it; only `retryable_errors` may name it.
const TEMPORARY: &str = "temporary";

/// A reason that no list may name: the `ack_*` keys alone decide about it.
const ACK_TIMEOUT: &str = "ack_timeout";

/// Names of permissions. The list is wsc-auth's, which this crate does not know.
pub(crate) const PERMISSIONS: [&str; 8] = [
    "read:message",
    "send:message",
    "create:room",
    "delete:room",
    "join:room",
    "leave:room",
    "admin:room",
    "admin:system",
];

/// Permissions that a resource cannot narrow.
const WHOLE: [&str; 2] = ["read:message", "admin:system"];

/// The shortest API key that is accepted: shorter ones can be guessed over the network.
const SHORTEST_API_KEY: usize = 16;

const CREDENTIALS: &str = "a URL with user name or password is not accepted, they have keys of their own";

pub(crate) fn retryable(reasons: &[String]) -> Vec<Wrong> {
    each(reasons, |reason| if reason == TEMPORARY { Ok(()) } else { known_reason(reason) })
}

pub(crate) fn non_retryable(reasons: &[String]) -> Vec<Wrong> {
    each(reasons, |reason| {
        if reason == TEMPORARY {
            return Err("\"temporary\" belongs in retryable_errors only".to_owned());
        }
        known_reason(reason)
    })
}

fn known_reason(reason: &str) -> Result<(), String> {
    if reason == ACK_TIMEOUT {
        return Err("\"ack_timeout\" cannot be listed, ack_timeout, ack_max_retries and \
                    ack_retry_interval alone decide about it"
            .to_owned());
    }
    let names = FailureReason::ALL.map(FailureReason::as_str);
    if names.contains(&reason) {
        return Ok(());
    }
    let listable = names.into_iter().filter(|name| *name != ACK_TIMEOUT);
    Err(unknown_name("failure reason", reason, listable.chain([TEMPORARY])))
}

pub(crate) fn event_filters(filters: &[String]) -> Vec<Wrong> {
    each(filters, |filter| {
        let group = filter.strip_suffix('*').filter(|group| group.ends_with('.'));
        let mut events = EventType::ALL.iter().map(|event| event.as_str());
        let known = match group {
            Some(group) => events.any(|event| event.starts_with(group)),
            None => filter == "*" || events.any(|event| event == filter),
        };
        if known {
            return Ok(());
        }
        let events = EventType::ALL.iter().map(|event| event.as_str());
        Err(unknown_name("event", filter, events))
    })
}

pub(crate) fn permissions(permissions: &[String]) -> Vec<Wrong> {
    each(permissions, |permission| {
        let split = PERMISSIONS.iter().find_map(|name| Some((*name, permission.strip_prefix(name)?)));
        match split {
            Some((_, "")) => Ok(()),
            Some((name, resource)) if resource.starts_with(':') => resource_of(name, &resource[1..]),
            _ => Err(unknown_name("permission", permission, PERMISSIONS)),
        }
    })
}

/// Checks what narrows a permission: a name, with `*` only at its end.
fn resource_of(permission: &str, resource: &str) -> Result<(), String> {
    if WHOLE.contains(&permission) {
        return Err(format!("{permission} cannot be narrowed to a resource"));
    }
    if resource.is_empty() {
        return Err(format!("names no resource after \"{permission}:\""));
    }
    if resource.strip_suffix('*').unwrap_or(resource).contains('*') {
        return Err(format!("\"*\" may stand only at the end, found {}", quoted(resource)));
    }
    Ok(())
}

fn unknown_name<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(meant) => format!("unknown {what} {}, did you mean \"{meant}\"?", quoted(name)),
        None => {
            let known: Vec<_> = known.into_iter().collect();
            format!("unknown {what} {}, known are {}", quoted(name), known.join(", "))
        }
    }
}

/// URLs that may be empty, which stands for none.
pub(crate) fn web_url(url: &str) -> Vec<Wrong> {
    if url.is_empty() { Vec::new() } else { one(url_of(&["http", "https"], url)) }
}

pub(crate) fn optional_web_url(url: &Option<String>) -> Vec<Wrong> {
    url.as_ref().map_or_else(Vec::new, |url| one(url_of(&["http", "https"], url)))
}

pub(crate) fn nats_urls(urls: &[String]) -> Vec<Wrong> {
    each(urls, |url| url_of(&["nats", "tls", "ws", "wss"], url))
}

/// Accepts `scheme://host…` without user and password, which have keys of their own and must not
/// show up in dumps and logs. The message does not repeat the URL, since it may hold a password.
///
/// What it accepts also parses where the URL is used, or a reload would fail after the check.
fn url_of(schemes: &[&str], url: &str) -> Result<(), String> {
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(&format!("{scheme}://")));
    let Some(rest) = rest else {
        return Err(format!("expected a URL that starts with {}://", schemes.join(":// or ")));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(CREDENTIALS.to_owned());
    }
    if authority.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("the URL has no host, or spaces in it".to_owned());
    }
    match Url::parse(url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => Err(CREDENTIALS.to_owned()),
        Ok(parsed) if parsed.host_str().is_none_or(str::is_empty) => Err("the URL has no host".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the URL is not well formed: {error}")),
    }
}

pub(crate) fn host_ports(addresses: &[String]) -> Vec<Wrong> {
    each(addresses, |address| {
        let parts = address.rsplit_once(':');
        let good = parts.is_some_and(|(host, port)| {
            !host.is_empty() && !address.contains(['@', '/', ' ']) && port.parse::<u16>().is_ok()
        });
        if good { Ok(()) } else { Err("expected host:port such as \"localhost:6379\"".to_owned()) }
    })
}

/// An origin as browsers send it: scheme, host, port if not the scheme's own, no path.
pub(crate) fn origins(origins: &[String]) -> Vec<Wrong> {
    each(origins, |origin| {
        let host = origin.split_once("://").filter(|(scheme, _)| !scheme.is_empty());
        let good = host.is_some_and(|(_, host)| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']));
        if good {
            return Ok(());
        }
        Err(format!(
            "expected an origin such as \"https://app.example.com\", without path or wildcard, \
             found {}",
            quoted(origin)
        ))
    })
}

pub(crate) fn hosts(hosts: &[String]) -> Vec<Wrong> {
    each(hosts, |host| {
        if !host.is_empty() && !host.contains(['/', '@', '*', ' ']) {
            return Ok(());
        }
        Err(format!(
            "expected a host name such as \"hub.example.com\", without scheme, path or wildcard, \
             found {}",
            quoted(host)
        ))
    })
}

pub(crate) fn api_keys(keys: &[Secret]) -> Vec<Wrong> {
    long_enough(keys)
}

/// A text that begins like the standard's own form must be of that form, or a slip would sign with another key than
/// the receiver has.
pub(crate) fn signing_secrets(secrets: &[Secret]) -> Vec<Wrong> {
    let short = long_enough(secrets);
    if !short.is_empty() {
        return short;
    }
    wrongs(secrets.iter().map(|secret| {
        let Some(text) = secret.expose_secret().strip_prefix("whsec_") else { return Ok(()) };
        match BASE64_STANDARD.decode(text) {
            Ok(key) if key.len() >= SHORTEST_API_KEY => Ok(()),
            Ok(key) => Err(format!("has {} bytes, at least {SHORTEST_API_KEY} are needed", key.len())),
            Err(_) => Err("is no base64 after \"whsec_\"".to_owned()),
        }
    }))
}

fn long_enough(secrets: &[Secret]) -> Vec<Wrong> {
    wrongs(secrets.iter().map(|secret| {
        let length = secret.expose_secret().len();
        if length >= SHORTEST_API_KEY {
            return Ok(());
        }
        Err(format!("has {length} bytes, at least {SHORTEST_API_KEY} are needed"))
    }))
}

/// HTTP header names are tokens, values hold no control characters.
pub(crate) fn headers(headers: &BTreeMap<String, Secret>) -> Vec<Wrong> {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let message = if name.is_empty() || !name.bytes().all(token) {
                "is no HTTP header name"
            } else if value.expose_secret().chars().any(char::is_control) {
                "the value holds control characters"
            } else {
                return None;
            };
            let mut wrong = Wrong::invalid(message);
            wrong.at = format!(".{name}");
            Some(wrong)
        })
        .collect()
}

fn each(items: &[String], rule: impl Fn(&str) -> Result<(), String>) -> Vec<Wrong> {
    wrongs(items.iter().map(|item| rule(item)))
}

fn wrongs(results: impl Iterator<Item = Result<(), String>>) -> Vec<Wrong> {
    results
        .enumerate()
        .filter_map(|(at, result)| {
            let mut wrong = Wrong::invalid(result.err()?);
            wrong.at = format!("[{at}]");
            Some(wrong)
        })
        .collect()
}

fn one(result: Result<(), String>) -> Vec<Wrong> {
    result.err().map(Wrong::invalid).into_iter().collect()
}
