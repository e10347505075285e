//! A hub inside an axum application, with a message type of the application's own.
//!
//! ```sh
//! cargo run -p wsc-examples --example embed
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::net::SocketAddr;

use axum::{Router, routing::get};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use wsc_client::Client;
use wsc_examples::{Error, is_self_test};
use wsc_hub::{Context, ErrorCode, ErrorReply, Hub};

#[derive(Deserialize)]
struct Division {
    dividend: f64,
    divisor: f64,
}

#[derive(Serialize, Deserialize)]
struct Quotient {
    quotient: f64,
    asked_by: String,
}

/// Answers `{"message_type":"divide","data":{"dividend":6,"divisor":4}}`.
async fn divide(context: Context, division: Division) -> Result<Quotient, ErrorReply> {
    if division.divisor == 0.0 {
        return Err(ErrorReply::new(ErrorCode::InvalidFormat, "divisor must not be 0"));
    }
    let quotient = division.dividend / division.divisor;
    Ok(Quotient { quotient, asked_by: context.user_id().to_string() })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let hub = Hub::builder().on("divide", divide).start().await?;
    let app = Router::new().route("/hello", get(async || "hello from the application")).merge(hub.router());

    let port = if is_self_test() { 0 } else { 8080 };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("http://{address}/hello is the application, http://{address}/ the hub's page");
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(async move { axum::serve(listener, service).await });

    if is_self_test() {
        let (client, _) = Client::builder(format!("ws://{address}/ws")).user_id("alice").connect().await?;
        let quotient: Quotient = client.request("divide", &json!({"dividend": 6, "divisor": 4})).await?.data()?;
        assert_eq!((quotient.quotient, quotient.asked_by.as_str()), (1.5, "alice"));
        println!("ok: 6 / 4 is {}", quotient.quotient);
        if let Err(refused) = client.request("divide", &json!({"dividend": 6, "divisor": 0})).await {
            println!("ok: 6 / 0 is refused: {refused}");
        }
        client.close().await;
    } else {
        tokio::signal::ctrl_c().await?;
    }
    hub.shutdown().await;
    server.abort();
    Ok(())
}
