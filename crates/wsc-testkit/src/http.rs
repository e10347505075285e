//! One HTTP/1.1 request over a fresh connection.

use std::fmt::Write as _;
use std::io;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::within;

/// What a server answered.
#[derive(Debug, Clone)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, chunks joined.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// The first header of that name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    ///
    /// # Panics
    ///
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body that is not UTF-8")
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("no JSON body ({error}) in {self:?}"),
        }
    }

    /// The code of `{"error":{"code":…,"message":…}}`.
    ///
    /// # Panics
    ///
    /// When the body is no such object, or its message is missing or empty.
    pub fn error_code(&self) -> i64 {
        let body = self.json();
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "no error message in {body}");
        body["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error code in {body}"))
    }
}

/// Sends one request (`Connection: close`) and reads the whole answer.
///
/// `url` is `http://address:port/path`. `Host` is taken from it unless
/// `headers` has one; `Content-Length` is added unless `headers` has one or
/// there is no body.
///
/// # Panics
///
/// When the server cannot be reached or answers something that is not HTTP.
pub async fn http(method: &str, url: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> HttpResponse {
    match try_http(method, url, headers, body).await {
        Ok(response) => response,
        Err(error) => panic!("no HTTP answer to {method} {url}: {error}"),
    }
}

/// As [`http`], for a server that may be gone.
///
/// # Errors
///
/// When the server cannot be reached, or the connection ends before the
/// answer is whole.
///
/// # Panics
///
/// When there is no answer in time, or it is not HTTP.
pub async fn try_http(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> io::Result<HttpResponse> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let has = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !has("host") {
        let _ = write!(head, "Host: {authority}\r\n");
    }
    if let Some(body) = body
        && !has("content-length")
        && !has("transfer-encoding")
    {
        let _ = write!(head, "Content-Length: {}\r\n", body.len());
    }
    for (key, value) in headers {
        let _ = write!(head, "{key}: {value}\r\n");
    }
    head.push_str("\r\n");

    let exchange = async {
        let mut stream = TcpStream::connect(authority).await?;
        // A server may answer (413, say) and close before it has read the
        // whole body, so a failed write is no failure yet.
        let written = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.unwrap_or_default()).await
        };
        let _ = written.await;
        let mut buffer = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(response) = parse(&buffer, method, false) {
                return Ok(response);
            }
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            }
        }
        let whole = parse(&buffer, method, true);
        whole.ok_or_else(|| {
            let text = format!("cut off after {:?}", String::from_utf8_lossy(&buffer));
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        })
    };
    within(&format!("answer to {method} {url}"), exchange).await
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODE).to_string()
}

/// Builds `?name=value&…`, values percent-encoded; empty for no parameters.
pub fn query(parameters: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        let lead = if text.is_empty() { '?' } else { '&' };
        let _ = write!(text, "{lead}{name}={}", encode(value));
    }
    text
}

/// Reads the response at the start of `bytes`, once it is complete. At the end
/// of the stream a body without a length is complete as well.
pub(crate) fn parse(bytes: &[u8], method: &str, at_end: bool) -> Option<HttpResponse> {
    let (mut response, head) = parse_head(bytes)?;
    let rest = &bytes[head..];
    let bodyless = method == "HEAD" || matches!(response.status, 100..=199 | 204 | 304);
    if bodyless {
        return Some(response);
    }
    let chunked = response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    if chunked {
        response.body = unchunk(rest)?;
        return Some(response);
    }
    match response.header("content-length") {
        Some(length) => {
            let length: usize = length.parse().expect("a numeric Content-Length");
            response.body = rest.get(..length)?.to_vec();
            Some(response)
        }
        None if at_end => {
            response.body = rest.to_vec();
            Some(response)
        }
        None => None,
    }
}

/// Reads status line and headers; also says how many bytes they take.
pub(crate) fn parse_head(bytes: &[u8]) -> Option<(HttpResponse, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no HTTP status line: {first:?}"));
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let response = HttpResponse { status, headers, body: Vec::new() };
    Some((response, end + 4))
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..line]).ok()?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        bytes = &bytes[line + 2..];
        if size == 0 {
            return bytes.ends_with(b"\r\n").then_some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

/// What RFC 3986 calls unreserved stays as it is.
const ENCODE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_and_chunks_give_the_same_body() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        for bytes in [plain.as_slice(), chunked.as_slice()] {
            assert_eq!(parse(bytes, "GET", false).unwrap().text(), "hello");
            assert!(parse(&bytes[..bytes.len() - 1], "GET", false).is_none());
        }
    }

    #[test]
    fn a_query_is_encoded() {
        assert_eq!(query(&[("user_id", "ä b&c")]), "?user_id=%C3%A4%20b%26c");
        assert_eq!(query(&[]), "");
    }
}
