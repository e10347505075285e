//! A trace goes from a caller through the hub to the receiver of webhooks.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use wsc_testkit::{Client, Launch, ServerProcess, WebhookReceiver};

use crate::{
    collector::{Collector, attribute},
    support::BIN,
};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const NOT_RECORDED: &str = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn push(server: &ServerProcess, traceparent: &str) -> u16 {
    let headers = [("Content-Type", "application/json"), ("traceparent", traceparent)];
    let body = json!({"content": "hello", "require_ack": true}).to_string();
    server.http("POST", "/api/users/bob/messages", &headers, Some(body.as_bytes())).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_from_the_caller_to_the_receiver_of_webhooks() {
    let mut collector = Collector::start("200 OK").await;
    let receiver = WebhookReceiver::start().await;
    let settings = format!(
        "wsc: {{listen: \"127.0.0.1:0\", node_id: hub-7, callbacks: {{enable_webhooks: true, batch_interval: 0s, \
         allow_private_addresses: true, webhook_url: \"{}\", event_filters: [message.delivered]}}}}\n",
        receiver.url()
    );
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &settings)],
        env: &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue"),
            ("OTEL_SERVICE_NAME", "chat"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ],
    };
    let mut server = ServerProcess::launch(BIN, &launch).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    for caller in [NOT_RECORDED, CALLER] {
        assert!(matches!(push(&server, caller).await, 200 | 202));
        let delivery = bob.expect_reliable("user_message").await;
        bob.ack(&[delivery["id"].as_str().unwrap()]).await;
    }
    // Both of them, if in two requests: the caller's trace is in the header of its own.
    let told = receiver
        .wait("the second message's event", |posts| {
            let of_caller = posts.iter().find(|post| {
                post.events()
                    .iter()
                    .any(|event| event["traceparent"].as_str().is_some_and(|text| text.contains("4bf92f35")))
            });
            of_caller.map(|post| post.header("traceparent").map(str::to_owned))
        })
        .await;
    assert_eq!(server.terminate().await, 0);

    let mut spans: BTreeMap<String, Span> = BTreeMap::new();
    while spans.len() < 3 {
        let export = collector.next().await;
        assert_eq!(export.resource("service.name").as_deref(), Some("chat"));
        assert_eq!(export.resource("service.instance.id").as_deref(), Some("hub-7"));
        assert!(export.head.contains("x-tenant: blue"), "{}", export.head);
        spans.extend(export.spans().map(|span| (span.name.clone(), span.clone())));
    }
    assert_eq!(spans.keys().map(String::as_str).collect::<Vec<_>>(), ["wsc.deliver", "wsc.request", "wsc.webhook"]);
    for span in spans.values() {
        assert_eq!(hex(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736", "{}", span.name);
    }
    let (request, deliver, webhook) = (&spans["wsc.request"], &spans["wsc.deliver"], &spans["wsc.webhook"]);
    assert_eq!(hex(&request.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(deliver.parent_span_id, request.span_id);
    assert_eq!(attribute(deliver, "wsc.outcome").as_deref(), Some("acked"));
    assert_eq!(hex(&webhook.parent_span_id), hex(&request.span_id));
    if let Some(told) = told {
        assert_eq!(told, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", hex(&webhook.span_id)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_no_message() {
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_BSP_SCHEDULE_DELAY", "10")];
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", "wsc: {listen: \"127.0.0.1:0\"}\n")],
        env: &env,
    };
    let mut server = ServerProcess::launch(BIN, &launch).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    for _ in 0..20 {
        assert!(matches!(push(&server, CALLER).await, 200 | 202));
        let delivery = bob.expect_reliable("user_message").await;
        bob.ack(&[delivery["id"].as_str().unwrap()]).await;
    }
    assert_eq!(server.terminate().await, 0);
    let log = server.log();
    assert_eq!(log.matches("the collector does not take spans").count(), 1, "{log}");
    assert!(log.contains("not all spans reached the collector"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_none_is_said_at_the_start() {
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", "wsc: {listen: \"127.0.0.1:0\"}\n")],
        env: &[("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url")],
    };
    let output = launch.run(BIN).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
