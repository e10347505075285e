//! What operators search their logs for.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess, eventually};

use crate::support::BIN;

/// The lines of a log in JSON that have this field.
fn lines_with(server: &ServerProcess, field: &str) -> Vec<Value> {
    let lines = server.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    lines.into_iter().filter(|line| line["fields"].get(field).is_some()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_one_line_that_says_what_failed_for_whom_and_no_content() {
    let settings = "wsc: {listen: \"127.0.0.1:0\", log: {format: json}, ack_timeout: 100ms, ack_max_retries: 1, \
                    ack_retry_interval: 1ms, enable_offline_ack: false}\n";
    let server = ServerProcess::start(BIN, settings).await;
    let mut bob = Client::connect(&format!("{}&token=not-for-logs", server.ws_url_as("bob"))).await;
    let push = json!({"content": "not-for-logs", "require_ack": true});
    let accepted = server.post("/api/users/bob/messages", &push).await.json();
    // It comes twice, and is not acknowledged.
    bob.expect_reliable("user_message").await;
    bob.expect_reliable("user_message").await;
    let line = eventually("the failure is logged", async || {
        server.get("/health").await;
        lines_with(&server, "message_id").pop()
    })
    .await;
    let fields = &line["fields"];
    assert_eq!((&line["level"], &fields["type"]), (&json!("WARN"), &json!("ack_timeout")), "{line}");
    assert_eq!((&fields["message_id"], &fields["user_id"]), (&accepted["id"], &json!("bob")), "{line}");
    assert!(fields["error"].as_str().is_some_and(|text| !text.is_empty()), "{line}");
    assert!(fields["timestamp"].as_u64().is_some_and(|ms| ms > 1_700_000_000_000), "{line}");
    assert_eq!(fields["retry_count"], 1, "{line}");
    assert_eq!(lines_with(&server, "message_id").len(), 1);
    assert!(!server.log().contains("not-for-logs"), "{}", server.log());
}
