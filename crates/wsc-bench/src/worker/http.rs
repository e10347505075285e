//! The little HTTP that the clients speak: the upgrade, and a push to the API.

/// The head of a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Bytes of the head, with its empty line.
    pub(crate) length: usize,
    /// Bytes of the body that follows; `None` where the head does not say.
    pub(crate) body: Option<usize>,
    /// Whether this accepts the upgrade that [`upgrade`] asks for.
    pub(crate) upgrades: bool,
}

/// Reads the head of a response at the start of `bytes`.
///
/// Returns `None` until it is whole.
///
/// # Errors
///
/// A status line or a length that cannot be read.
pub(crate) fn head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        anyhow::ensure!(bytes.len() < LONGEST_HEAD, "no end of an HTTP head within {LONGEST_HEAD} bytes");
        return Ok(None);
    };
    let text = str::from_utf8(&bytes[..end]).map_err(|_| anyhow::anyhow!("an HTTP head that is no text"))?;
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| anyhow::anyhow!("not an HTTP answer: {line:?}"))?;
    let (mut body, mut accepted) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            body = Some(value.parse().map_err(|_| anyhow::anyhow!("not a length: {value:?}"))?);
        } else if name.eq_ignore_ascii_case("sec-websocket-accept") {
            accepted = value == ACCEPT;
        }
    }
    Ok(Some(Head { status, length: end + 4, body, upgrades: status == 101 && accepted }))
}

/// The request for an upgrade. `target` is path and query, `authorization` a header's value.
pub(crate) fn upgrade(out: &mut Vec<u8>, host: &str, target: &str, authorization: Option<&str>) {
    line(out, &["GET ", target, " HTTP/1.1"]);
    line(out, &["Host: ", host]);
    line(out, &["Upgrade: websocket"]);
    line(out, &["Connection: Upgrade"]);
    line(out, &["Sec-WebSocket-Version: 13"]);
    line(out, &["Sec-WebSocket-Key: ", KEY]);
    line(out, &["Sec-WebSocket-Protocol: wsc.v1"]);
    if let Some(value) = authorization {
        line(out, &["Authorization: ", value]);
    }
    line(out, &[]);
}

/// A request that posts JSON and keeps the connection.
pub(crate) fn post(out: &mut Vec<u8>, host: &str, target: &str, authorization: Option<&str>, body: &[u8]) {
    line(out, &["POST ", target, " HTTP/1.1"]);
    line(out, &["Host: ", host]);
    line(out, &["Content-Type: application/json"]);
    line(out, &["Content-Length: ", &body.len().to_string()]);
    if let Some(value) = authorization {
        line(out, &["Authorization: ", value]);
    }
    line(out, &[]);
    out.extend_from_slice(body);
}

fn line(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The key of RFC 6455's example, and what it has to be answered with: one of each is enough, and spares a hash.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const LONGEST_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_needs_the_right_answer_to_the_key() {
        let answer = |accept: &str| {
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n")
        };
        let right = answer(ACCEPT);
        for cut in 0..right.len() {
            assert_eq!(head(&right.as_bytes()[..cut]).unwrap(), None);
        }
        let with_a_frame = [right.as_bytes(), b"\x81\x01x"].concat();
        let parsed = head(&with_a_frame).unwrap().unwrap();
        assert!(parsed.upgrades);
        assert_eq!(&with_a_frame[parsed.length..], b"\x81\x01x");
        assert!(!head(answer("nonsense").as_bytes()).unwrap().unwrap().upgrades);
    }

    #[test]
    fn a_refusal_is_read_with_its_length() {
        let parsed = head(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 17\r\n\r\n").unwrap().unwrap();
        assert_eq!((parsed.status, parsed.body, parsed.upgrades), (503, Some(17), false));
        assert!(head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }

    #[test]
    fn requests_are_whole() {
        let mut out = Vec::new();
        post(&mut out, "h:1", "/api/broadcast", Some("Bearer t"), b"{}");
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("POST /api/broadcast HTTP/1.1\r\nHost: h:1\r\n"));
        assert!(text.contains("Authorization: Bearer t\r\n"));
        assert!(text.ends_with("Content-Length: 2\r\nAuthorization: Bearer t\r\n\r\n{}"));
    }
}
