//! Who may talk to this hub at all (protocol §5, *Exposure*): a web page on another origin and a name that was
//! rebound to this machine may not, however harmless the request looks.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Uri, header, uri::Authority};
use wsc_config::Settings;
use wsc_transport::Peer;

/// Why a request is refused, for people.
pub(crate) type Objection = &'static str;

/// Checks `Origin` and `Sec-Fetch-Site`. No `Origin` is fine: programs send none.
pub(crate) fn check_origin(headers: &HeaderMap, settings: &Settings) -> Result<(), Objection> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    match (origins.next(), origins.next()) {
        (None, _) if is_cross_site => Err("cross-site requests are not allowed"),
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err("more than one Origin"),
        (Some(origin), None) => {
            let origin = origin.to_str().map_err(|_| "Origin is not readable")?;
            let is_allowed = settings.auth.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
            if is_allowed || (is_same_origin(origin, headers) && !is_cross_site) {
                Ok(())
            } else {
                Err("this Origin is not allowed")
            }
        }
    }
}

/// Whether host and port of the origin are those of `Host`.
fn is_same_origin(origin: &str, headers: &HeaderMap) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Some(host) = host(headers) else { return false };
    let parse = |text: &str| {
        let authority = parse_authority(text)?;
        let port = authority.port_u16().unwrap_or(default_port);
        Some((authority.host().to_ascii_lowercase(), port))
    };
    parse(authority).zip(parse(host)).is_some_and(|(a, b)| a == b)
}

/// A host and perhaps a port. Somebody's name before them (`user@host`) has no place in a header (RFC 9112 §3.2).
fn parse_authority(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|_| !text.contains('@'))
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// Checks `Host` on a loopback listener: it must be a loopback name, or one that the settings allow. A name that
/// some DNS server made point here would otherwise open the hub to any page.
pub(crate) fn check_host(headers: &HeaderMap, uri: &Uri, settings: &Settings) -> Result<(), Objection> {
    if !settings.listen.ip().is_loopback() {
        return Ok(());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("more than one Host");
    }
    let host = first.map(|host| host.to_str().map_err(|_| "Host is not readable")).transpose()?;
    // What the request line names counts (RFC 9112 §3.2.2); a header that says something else is up to no good.
    let authority = match (uri.authority().map(Authority::as_str), host) {
        (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => return Err("two hosts are asked for"),
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err("Host is missing"),
    };
    let name = parse_authority(authority).ok_or("Host is not valid")?;
    let name = name.host().trim_matches(['[', ']']);
    let is_loopback =
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_allowed = |allowed: &String| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(authority);
    if is_loopback || settings.http.allowed_hosts.iter().any(is_allowed) {
        Ok(())
    } else {
        Err("this Host is not allowed")
    }
}

/// Checks whether pages that are closed to strangers may be shown while authentication is off: only on a loopback
/// listener, to a loopback peer, directly, under a loopback name. `peer` is `None` where a foreign server accepted
/// the connection and did not say from whom.
pub(crate) fn check_private(
    headers: &HeaderMap,
    uri: &Uri,
    peer: Option<&Peer>,
    settings: &Settings,
) -> Result<(), Objection> {
    if !settings.listen.ip().is_loopback() {
        return Err("closed while authentication is off and the hub listens beyond loopback");
    }
    if !peer.is_some_and(|peer| peer.remote.ip().to_canonical().is_loopback()) {
        return Err("closed to other machines while authentication is off");
    }
    if headers.keys().any(|name| tells_of_a_proxy(name.as_str())) {
        return Err("closed to forwarded requests while authentication is off");
    }
    check_host(headers, uri, settings)
}

/// The address that a request comes from: the peer's, or what trusted proxies say about it. Of the addresses that they
/// listed the last one counts that is none of theirs: what stands before it, the client may have written itself.
pub(crate) fn client_address(headers: &HeaderMap, peer: &Peer, settings: &Settings) -> IpAddr {
    let is_trusted = |address: IpAddr| settings.trusted_proxies.iter().any(|range| range.contains(address));
    let mut address = peer.remote.ip().to_canonical();
    if !is_trusted(address) {
        return address;
    }
    let lists = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = lists.flat_map(|list| list.split(',')).collect();
    for hop in hops.into_iter().rev() {
        // What is no address says nothing, and neither does what stands before it.
        let Some(next) = parse_hop(hop.trim()) else { break };
        address = next;
        if !is_trusted(address) {
            break;
        }
    }
    address
}

/// An address of `X-Forwarded-For`; some proxies write the port, too.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let address = bare.or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(address.to_canonical())
}

/// Whether proxies add a header of this name: behind one, a loopback peer says nothing.
fn tells_of_a_proxy(name: &str) -> bool {
    matches!(name, "forwarded" | "via" | "x-real-ip" | "cf-connecting-ip" | "fastly-client-ip")
        || name.starts_with("x-forwarded-")
        || name.starts_with("x-envoy-")
        || name.ends_with("client-ip")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(n, v)| (http::HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn an_origin_must_be_ours_or_allowed() {
        let mut settings = Settings::default();
        settings.auth.allowed_origins = vec!["https://app.example".into()];
        let check = |pairs: &[_]| check_origin(&headers(pairs), &settings).is_ok();
        assert!(check(&[("host", "localhost:8080")]));
        assert!(check(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(check(&[("host", "hub.example"), ("origin", "https://hub.example:443")]));
        assert!(check(&[("host", "localhost:8080"), ("origin", "https://app.example")]));
        assert!(!check(&[("host", "localhost:8080"), ("origin", "http://localhost:8081")]));
        assert!(!check(&[("host", "localhost:8080"), ("origin", "http://evil.example")]));
        assert!(!check(&[("host", "localhost:8080"), ("origin", "null")]));
        assert!(!check(&[("host", "localhost:8080"), ("sec-fetch-site", "cross-site")]));
        assert!(check(&[("host", "localhost:8080"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_loopback_listener_wants_a_loopback_name() {
        let mut settings = Settings::default();
        settings.http.allowed_hosts = vec!["hub.internal".into()];
        let check = |host: &'static str, settings: &Settings| {
            check_host(&headers(&[("host", host)]), &Uri::from_static("/ws"), settings).is_ok()
        };
        for good in ["localhost", "localhost:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:8080", "hub.internal:8080"] {
            assert!(check(good, &settings), "{good}");
        }
        for bad in
            ["evil.example@localhost", "evil.example", "localhost.evil.example", "10.0.0.1", "", "user@localhost@x"]
        {
            assert!(!check(bad, &settings), "{bad}");
        }
        settings.listen = "0.0.0.0:80".parse().unwrap();
        assert!(check("evil.example", &settings));
    }

    #[test]
    fn a_forwarded_address_is_as_good_as_who_says_it() {
        let mut settings = Settings::default();
        settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let address = |remote: &str, pairs: &[_]| {
            let peer =
                Peer { remote: remote.parse().unwrap(), local: "127.0.0.1:8080".parse().unwrap(), is_tls: false };
            client_address(&headers(pairs), &peer, &settings).to_string()
        };
        let forwarded = |list| [("x-forwarded-for", list)];
        assert_eq!(address("203.0.113.9:5", &forwarded("198.51.100.1")), "203.0.113.9");
        assert_eq!(address("10.0.0.1:5", &[]), "10.0.0.1");
        assert_eq!(address("10.0.0.1:5", &forwarded("198.51.100.1")), "198.51.100.1");
        assert_eq!(address("[::ffff:10.0.0.1]:5", &forwarded("198.51.100.1:4711")), "198.51.100.1");
        // The client wrote the first one, the proxies the others.
        assert_eq!(address("127.0.0.1:5", &forwarded("1.1.1.1, 198.51.100.1, 10.0.0.7")), "198.51.100.1");
        assert_eq!(address("127.0.0.1:5", &forwarded("198.51.100.1, unknown")), "127.0.0.1");
        assert_eq!(address("127.0.0.1:5", &forwarded("10.0.0.3, 10.0.0.7")), "10.0.0.3");
        assert_eq!(address("127.0.0.1:5", &forwarded("[2001:db8::1]")), "2001:db8::1");
    }

    #[test]
    fn private_pages_are_for_this_machine() {
        let settings = Settings::default();
        let uri = Uri::from_static("/metrics");
        let peer = |remote: &str| Peer {
            remote: remote.parse().unwrap(),
            local: "127.0.0.1:8080".parse().unwrap(),
            is_tls: false,
        };
        let local = headers(&[("host", "localhost")]);
        assert!(check_private(&local, &uri, Some(&peer("127.0.0.1:5")), &settings).is_ok());
        assert!(check_private(&local, &uri, Some(&peer("[::ffff:127.0.0.1]:5")), &settings).is_ok());
        assert!(check_private(&local, &uri, Some(&peer("10.0.0.1:5")), &settings).is_err());
        assert!(check_private(&local, &uri, None, &settings).is_err());
        let forwarded = headers(&[("host", "localhost"), ("x-forwarded-for", "10.0.0.1")]);
        assert!(check_private(&forwarded, &uri, Some(&peer("127.0.0.1:5")), &settings).is_err());
    }
}
