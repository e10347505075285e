//! Bad frames: what is not the JSON object that the hub asks for.

use serde_json::json;
use wsc_testkit::Client;

use crate::support::{assert_closed, hub};

/// Texts that are no message at all.
fn bad_frames() -> Vec<(&'static str, String)> {
    let ping = |data: &str| format!(r#"{{"message_type":"ping","data":{data}}}"#);
    let say =
        |content: &str| format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":{content}}}}}"#);
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    vec![
        ("nothing", String::new()),
        ("white space", " \n".to_owned()),
        ("no JSON", "hello".to_owned()),
        ("null", "null".to_owned()),
        ("a number", "5".to_owned()),
        ("a text", "\"ping\"".to_owned()),
        ("an array", "[]".to_owned()),
        ("an object in an array", format!("[{}]", ping("{}"))),
        ("two objects", ping("{}") + &ping("{}")),
        ("something behind the object", ping("{}") + "x"),
        ("half an object", r#"{"message_type":"ping","#.to_owned()),
        ("a trailing comma", r#"{"message_type":"ping",}"#.to_owned()),
        ("single quotes", "{'message_type':'ping'}".to_owned()),
        ("a comment", r#"{"message_type":"ping"/*x*/}"#.to_owned()),
        ("not a number", ping("NaN")),
        ("a number with a leading zero", ping("01")),
        ("a raw line feed in a text", ping("\"a\nb\"")),
        ("an unknown escape", ping(r#""\x41""#)),
        ("a type that is a number", r#"{"message_type":5}"#.to_owned()),
        ("a type that is null", r#"{"message_type":null}"#.to_owned()),
        ("no type", r#"{"data":{}}"#.to_owned()),
        ("an empty object", "{}".to_owned()),
        ("a lone high surrogate", ping(r#"{"x":"\ud800"}"#)),
        ("a lone low surrogate", ping(r#"{"x":"\udc00"}"#)),
        ("a lone surrogate before text", say(r#""\ud800abc""#)),
        ("two high surrogates", say(r#""\ud800\ud800""#)),
        ("a lone surrogate in a name", say(r#"{"\udfff":1}"#)),
        ("a lone surrogate deep down", say(r#"[[[{"a":["\ud83d"]}]]]"#)),
        ("a lone surrogate in an unknown field", r#"{"message_type":"ping","extra":"\ud800"}"#.to_owned()),
        ("nesting of 70 levels", say(&deep(70))),
        ("nesting of 70 levels in an unknown field", { format!(r#"{{"message_type":"ping","extra":{}}}"#, deep(70)) }),
        ("nesting of 10,000 levels", ping(&deep(10_000))),
        ("60,000 open brackets", "[".repeat(60_000)),
        ("10,000 open objects", r#"{"a":"#.repeat(10_000)),
        ("unbalanced brackets", ping("[}")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_are_answered_and_the_connection_stays() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.join("r1").await;
    for (name, text) in bad_frames() {
        println!("{name}");
        alice.send_text(text).await;
        let error = alice.expect_error(1001).await;
        assert_eq!(error["data"]["temporary"], false, "{name}: {error}");
        // A good one, so that the bad ones do not add up.
        alice.expect_quiet().await;
    }
    // Nothing of it went on to the room.
    alice.say("r1", json!("end")).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], "end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_binary_frames_are_bad_frames() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let cases: [&[u8]; 4] = [b"", b"\0\x01\x02", b"{\"message_type\":\"\xff\"}", b"null"];
    for case in cases {
        client.send_binary(case).await;
        client.expect_error(1001).await;
        client.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tenth_bad_frame_in_a_row_is_the_last() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for _ in 0..10 {
        client.send_text("nonsense").await;
        client.expect_error(1001).await;
    }
    assert_closed(&client.expect_close().await, 3509);
    Client::connect(&server.ws_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_frame_starts_the_count_anew() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for _ in 0..3 {
        for _ in 0..9 {
            client.send_text("[]").await;
            client.expect_error(1001).await;
        }
        client.expect_quiet().await;
    }
    for _ in 0..10 {
        client.send_text("[]").await;
        client.expect_error(1001).await;
    }
    assert_closed(&client.expect_close().await, 3509);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_of_different_kinds_add_up() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let texts = ["null", "[]", "x", r#"{"message_type":1}"#, ""];
    for text in texts.iter().chain(&texts) {
        client.send_text(*text).await;
        client.expect_error(1001).await;
    }
    assert_closed(&client.expect_close().await, 3509);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_bodies_over_http_are_refused_as_well() {
    let server = hub("").await;
    for (name, text) in bad_frames() {
        if name == "an empty object" || name == "no type" {
            continue;
        }
        let answer = server.post_text("/api/broadcast", &text).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        answer.error_code();
    }
    assert_eq!(server.get("/health").await.status, 200);
}
