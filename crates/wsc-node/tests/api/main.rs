//! The HTTP API of a hub in this process.

mod support;

use support::hub;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_is_healthy() {
    let hub = hub("").await;
    let answer = hub.get("/health").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["status"], "ok");
    assert_eq!(hub.get("/nope").await.status, 404);
}
