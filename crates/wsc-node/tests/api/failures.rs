//! Failures: each counted once in every family of metrics, and told to those who want to know.

use std::sync::Arc;

use serde_json::{json, value::to_raw_value};
use tokio::sync::mpsc;
use wsc_failure::{FailureAlert, UserOfflineHandler};
use wsc_node::{Hub, SendOptions};
use wsc_protocol::{Event, FailureKind, FailureReason, Fate, HubMessage, Id};
use wsc_testkit::{Client, Frame, Metrics, RawClient, RawOptions, eventually, within};

use crate::support::{TestHub, hub, settings};

async fn metrics(hub: &TestHub) -> Metrics {
    Metrics::parse(hub.get("/metrics").await.text())
}

/// The three families have the same sum, which is given back.
#[track_caller]
fn sum(metrics: &Metrics) -> f64 {
    let sum = metrics.sum("wsc_failures_by_reason_total", &[]);
    assert_eq!(metrics.sum("wsc_total_failures_total", &[]), sum);
    assert_eq!(metrics.sum("wsc_failures_by_type_total", &[]), sum);
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_is_counted_once_however_they_are_divided() {
    let keys = "node_id: n1, ack_timeout: 1s, ack_max_retries: 0, inbox: {retry_interval: 1h}, \
        storage: {kind: memory, inbox_max_messages: 1}, failure_handlers: {offline_storage: none}";
    let hub = hub(keys).await;
    let reliable = SendOptions::default().require_ack();
    let content = to_raw_value("hi").unwrap();

    let url = format!("ws://{}/ws?user_id=agent&user_type=agent", hub.addr);
    let mut agent = Client::connect(&url).await;
    hub.hub.send_to_user_with("agent", &content, &reliable).await.unwrap();
    let refused = agent.expect_reliable("user_message").await["id"].clone();
    agent.send(&json!({"message_type": "nack", "data": {"id": refused, "reason": "busy"}})).await;
    eventually("the nack is counted", async || (sum(&metrics(&hub).await) == 1.0).then_some(())).await;

    // No acknowledgement: the attempts are used up, and it rests. That is a failure, though no failed message.
    hub.hub.send_to_user_with("agent", &content, &reliable).await.unwrap();
    agent.expect_reliable("user_message").await;
    eventually("it timed out", async || (sum(&metrics(&hub).await) == 2.0).then_some(())).await;

    // The inbox has room for one.
    hub.hub.send_to_user_with("away", &content, &reliable).await.unwrap();
    hub.hub.send_to_user_with("away", &content, &reliable).await.unwrap_err();
    // Plain messages are not stored here.
    let receipt = hub.hub.send_to_user("bob", "hi").await.unwrap();
    assert_eq!(receipt.fate, Fate::failed(FailureReason::UserOffline));

    let metrics = metrics(&hub).await;
    assert_eq!(sum(&metrics), 4.0);
    for (reason, times) in
        [("rejected", 1.0), ("ack_timeout", 1.0), ("pending_full", 1.0), ("user_offline", 1.0), ("queue_full", 0.0)]
    {
        assert_eq!(metrics.sum("wsc_failures_by_reason_total", &[("reason", reason)]), times, "{reason}");
    }
    for (kind, times) in [("other", 1.0), ("timeout", 1.0), ("queue_full", 1.0), ("user_offline", 1.0)] {
        let labels = [("type", kind), ("hub_id", "n1")];
        assert_eq!(metrics.sum("wsc_failures_by_type_total", &labels), times, "{kind}");
    }
    let of_type = |name| metrics.sum("wsc_total_failures_total", &[("hub_id", "n1"), ("client_type", name)]);
    assert_eq!((of_type("agent"), of_type("unknown"), of_type("bot")), (2.0, 2.0, 0.0));
    // Of the four, one is a pair that failed, and one a pair that was rejected.
    assert_eq!(metrics.sum("wsc_messages_total", &[("outcome", "failed")]), 1.0);
    metrics.ledger().check();
    let stats = hub.get("/health/failure-stats").await.json();
    assert_eq!((&stats["total_failures"], &stats["timeout_count"]), (&json!(4), &json!(1)), "{stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_rooms_are_counted_too() {
    let hub = hub("queue: {max_bytes: 16KiB, policy: drop_oldest}").await;
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut slow = RawClient::connect_with(hub.addr, "/ws?user_id=slow", options).await;
    slow.expect("connected").await;
    slow.send(&Frame::text(r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#)).await;
    slow.expect("room_joined").await;
    let content = "x".repeat(32 * 1024);
    let failed = eventually("its queue overflows", async || {
        hub.hub.send_to_room("r1", &content).await.unwrap();
        let metrics = metrics(&hub).await;
        let failed = sum(&metrics);
        assert!(failed >= metrics.sum("wsc_messages_total", &[("outcome", "failed")]));
        (failed >= 3.0).then_some(failed)
    })
    .await;
    hub.hub.disconnect_user("slow", "bye", false);
    drop(slow);
    eventually("nothing is on its way", async || {
        (metrics(&hub).await.sum("wsc_messages_in_flight", &[]) == 0.0).then_some(())
    })
    .await;
    let metrics = metrics(&hub).await;
    assert_eq!(sum(&metrics), metrics.sum("wsc_messages_total", &[("outcome", "failed")]));
    assert_eq!(metrics.sum("wsc_total_failures_total", &[("client_type", "unknown")]), sum(&metrics));
    assert!(metrics.sum("wsc_failures_by_reason_total", &[("reason", "queue_full")]) >= failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_is_there_from_the_start() {
    let hub = hub("").await;
    let metrics = metrics(&hub).await;
    for name in [
        "wsc_connections",
        "wsc_users",
        "wsc_rooms",
        "wsc_connections_total",
        "wsc_disconnections_total",
        "wsc_handshake_failures_total",
        "wsc_messages_accepted_total",
        "wsc_messages_recovered_total",
        "wsc_messages_released_total",
        "wsc_messages_total",
        "wsc_messages_stored",
        "wsc_messages_in_flight",
        "wsc_deliveries_total",
        "wsc_bytes_total",
        "wsc_queue_bytes",
        "wsc_slow_consumers_total",
        "wsc_fanout_duration_seconds_count",
        "wsc_ack_latency_seconds_count",
        "wsc_acks_ignored_total",
        "wsc_total_failures_total",
        "wsc_failures_by_type_total",
        "wsc_failures_by_reason_total",
        "wsc_retry_attempts_total",
        "wsc_retry_success_total",
        "wsc_failure_handler_duration_seconds_count",
        "wsc_failure_alerts_total",
        "wsc_callback_executions_total",
        "wsc_callback_errors_total",
        "wsc_callback_duration_seconds_count",
    ] {
        assert!(metrics.has(name), "{name} is missing");
    }
    let off = crate::support::hub("failure_handlers: {enable_metrics: false}").await;
    assert!(!self::metrics(&off).await.has("wsc_failures_by_reason_total"));
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_raise_one_alert() {
    let keys = "storage: {kind: memory}, \
        failure_handlers: {offline_storage: none, enable_alert: true, alert_threshold: 3, alert_window: 1m}";
    let (sender, mut alerts) = mpsc::unbounded_channel();
    let sink = move |alert: &FailureAlert| sender.send(alert.clone()).unwrap();
    let hub = Hub::builder().settings(settings(keys)).alert_sink(sink).start().await.unwrap();
    for _ in 0..2 {
        hub.send_to_user("bob", "hi").await.unwrap();
    }
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    assert!(alerts.try_recv().is_err());
    for _ in 0..5 {
        hub.send_to_user("bob", "hi").await.unwrap();
    }
    let alert = alerts.recv().await.unwrap();
    assert_eq!((alert.kind, alert.count, alert.threshold), (FailureKind::UserOffline, 7, 3));
    tokio::time::advance(std::time::Duration::from_secs(30)).await;
    hub.shutdown().await;
    assert!(alerts.try_recv().is_err(), "it is quiet for a minute");
}

struct Remember(mpsc::UnboundedSender<String>);

#[async_trait::async_trait]
impl UserOfflineHandler for Remember {
    async fn handle_user_offline(&self, _: &Arc<HubMessage>, user_id: &Id, _: &str) {
        let _ = self.0.send(user_id.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_and_callbacks_come_and_go_and_are_measured() {
    let hub = hub("storage: {kind: memory}, failure_handlers: {offline_storage: none, enable_logging: false}").await;
    let (sender, mut missed) = mpsc::unbounded_channel();
    let handler = hub.hub.add_user_offline_handler(Remember(sender));
    let (sender, mut events) = mpsc::unbounded_channel();
    let callback = hub
        .hub
        .callbacks()
        .register_callback("failure.*", move |event: &Event| sender.send(event.event_type().as_str()))
        .unwrap();
    hub.hub.send_to_user("bob", "hi").await.unwrap();
    assert_eq!(within("the handler", missed.recv()).await.as_deref(), Some("bob"));
    assert_eq!(within("the callback", events.recv()).await, Some("failure.user_offline"));
    let measured = eventually("both are measured", async || {
        let metrics = metrics(&hub).await;
        let handlers = metrics.sum("wsc_failure_handler_duration_seconds_count", &[("handler_type", "user_offline")]);
        let labels = [("event_type", "failure.user_offline")];
        let callbacks = metrics.sum("wsc_callback_executions_total", &labels);
        let durations = metrics.sum("wsc_callback_duration_seconds_count", &labels);
        (handlers == 1.0 && durations == 1.0).then_some(callbacks)
    })
    .await;
    assert_eq!(measured, 1.0);
    let page = hub.get("/debug/callbacks").await.json();
    assert_eq!(page["registered"], 1);
    assert_eq!(page["events"][0]["event_type"], "failure.user_offline", "{page}");
    let status = hub.get("/debug/hub/status").await.json();
    let handlers = status["handler_status"]["handlers"].as_array().unwrap();
    let offline = handlers.iter().find(|entry| entry["handler_type"] == "user_offline").unwrap();
    assert_eq!((&offline["registered"], &offline["calls"]), (&json!(1), &json!(1)), "{status}");

    assert!(hub.hub.remove_user_offline_handler(handler) && !hub.hub.remove_user_offline_handler(handler));
    assert!(hub.hub.callbacks().unregister_callback(callback));
    assert_eq!(hub.hub.debug_info().registered, 0);
    hub.hub.send_to_user("carol", "hi").await.unwrap();
    hub.hub.shutdown().await;
    assert!(missed.recv().await.is_none() && events.recv().await.is_none());
}
