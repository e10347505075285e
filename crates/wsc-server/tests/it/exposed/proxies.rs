//! Whose address counts behind a proxy, and who cannot choose it.

use std::net::Ipv4Addr;

use wsc_testkit::{Handshake, HttpResponse, RawClient, RawOptions, ServerProcess, eventually};

use crate::support::{assert_refused, expect_clients, hub};

/// A client that comes from this loopback address with these headers; the
/// connection is open as long as the value lives.
async fn from(server: &ServerProcess, source: Ipv4Addr, headers: &[(&str, &str)]) -> (RawClient, HttpResponse) {
    let options = RawOptions { source: Some(source), ..RawOptions::default() };
    let mut raw = RawClient::tcp_with(server.addr(), options).await;
    let handshake = headers.iter().fold(Handshake::new(server.addr(), "/ws"), |h, (name, value)| h.add(name, value));
    let response = raw.handshake(&handshake).await;
    (raw, response)
}

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

const ONE: &str = "trusted_proxies: [\"127.0.0.10\"], limits: {ip_connections: 1}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_each_client_has_an_address() {
    let server = hub(ONE).await;
    let mut held = Vec::new();
    for client in ["203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2"] {
        let (raw, response) = from(&server, PROXY, &[("X-Forwarded-For", client)]).await;
        assert_eq!(response.status, 101, "{client}: {response:?}");
        held.push(raw);
        let (_, response) = from(&server, PROXY, &[("X-Forwarded-For", client)]).await;
        assert_refused(&response, 429, 1005);
    }
    expect_clients(&server, 4).await;
    drop(held);
    expect_clients(&server, 0).await;
    let (_raw, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1")]).await;
    assert_eq!(response.status, 101, "its place is free again: {response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_say_where_it_comes_from() {
    let server = hub(ONE).await;
    let (_held, response) = from(&server, STRANGER, &[("X-Forwarded-For", "203.0.113.1")]).await;
    assert_eq!(response.status, 101, "{response:?}");
    for claim in ["203.0.113.2", "127.0.0.10", "203.0.113.3, 127.0.0.10", "unknown", ""] {
        let (_, response) = from(&server, STRANGER, &[("X-Forwarded-For", claim)]).await;
        assert_refused(&response, 429, 1005);
    }
    // Nor fill the place of the one whose name it took.
    let (_victim, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1")]).await;
    assert_eq!(response.status, 101, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_list_the_last_address_that_is_no_proxy_counts() {
    let server = hub("trusted_proxies: [\"127.0.0.10\", \"10.0.0.0/8\"], limits: {ip_connections: 1}").await;
    // The client writes what it likes on the left; the proxies add the truth on the right.
    let (_held, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1, 10.1.2.3")]).await;
    assert_eq!(response.status, 101, "{response:?}");
    for spoofed in [
        "203.0.113.1",
        "198.51.100.7, 203.0.113.1",
        "198.51.100.8,203.0.113.1,10.9.9.9",
        "127.0.0.1, 203.0.113.1 , 10.0.0.1, 10.0.0.2",
        "garbage, 203.0.113.1",
        "203.0.113.1:4711",
        "::ffff:203.0.113.1",
    ] {
        let (_, response) = from(&server, PROXY, &[("X-Forwarded-For", spoofed)]).await;
        assert_eq!(response.status, 429, "{spoofed}: {response:?}");
    }
    // Two lines are one list.
    let lines = [("X-Forwarded-For", "198.51.100.9"), ("X-Forwarded-For", "203.0.113.1")];
    let (_, response) = from(&server, PROXY, &lines).await;
    assert_eq!(response.status, 429, "two lines: {response:?}");
    let (_other, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1, 198.51.100.1")]).await;
    assert_eq!(response.status, 101, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_says_nothing_is_the_client() {
    let server = hub(ONE).await;
    let (_held, response) = from(&server, PROXY, &[]).await;
    assert_eq!(response.status, 101, "{response:?}");
    let (_, response) = from(&server, PROXY, &[]).await;
    assert_refused(&response, 429, 1005);
    // Nor does nonsense multiply the places.
    for nonsense in ["", ",", "garbage", "1.2.3", "999.1.1.1", "203.0.113.1; DROP", "\u{e9}"] {
        let (_, response) = from(&server, PROXY, &[("X-Forwarded-For", nonsense)]).await;
        assert_eq!(response.status, 429, "{nonsense:?}: {response:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_trusted_proxies_nobody_is_believed() {
    let server = hub("limits: {ip_connections: 1}").await;
    let (_held, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1")]).await;
    assert_eq!(response.status, 101, "{response:?}");
    for header in ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP"] {
        let (_, response) = from(&server, PROXY, &[(header, "203.0.113.2")]).await;
        assert_refused(&response, 429, 1005);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_no_attack() {
    let server = hub(ONE).await;
    let (_held, response) = from(&server, PROXY, &[("X-Forwarded-For", "203.0.113.1")]).await;
    assert_eq!(response.status, 101, "{response:?}");
    let list = "198.51.100.1, ".repeat(400) + "203.0.113.1";
    let (_, response) = from(&server, PROXY, &[("X-Forwarded-For", &list)]).await;
    assert!(matches!(response.status, 400 | 429 | 431), "{response:?}");
    eventually("it is as before", async || (server.get("/health").await.status == 200).then_some(())).await;
}

/// A page of the API is for this machine only while authentication is off; a trusted proxy does not change that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_in_a_proxy_opens_no_pages() {
    let server = hub("trusted_proxies: [\"127.0.0.0/8\"]").await;
    for client in ["127.0.0.1", "203.0.113.1"] {
        let answer = server.http("GET", "/api/stats", &[("X-Forwarded-For", client)], None).await;
        assert_eq!(answer.status, 403, "{client}: {answer:?}");
    }
}
